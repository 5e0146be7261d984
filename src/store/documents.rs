//! Knowledge documents of an entity or department.

use super::{
    Page, PageRequest, Store, StoreError,
    db::{Row, Scope, args},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    pub entity_id: String,
    pub department_id: String,
    pub title: String,
    pub content: String,
    pub created_at: i64,
}

impl Store {
    pub async fn add_document(&self, tenant: &str, new: &Document) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(tenant),
                "INSERT INTO documents (id, tenant, entity_id, department_id, title, content,
                                    created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
                args![
                    &new.id,
                    tenant,
                    &new.entity_id,
                    &new.department_id,
                    &new.title,
                    &new.content,
                    new.created_at
                ],
            )
            .await?;
        Ok(())
    }

    /// Newest first.
    pub async fn documents(
        &self,
        tenant: &str,
        entity_id: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<Document>, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let rows = tx
            .all(
                "SELECT * FROM documents WHERE tenant = $1 AND ($2 IS NULL OR entity_id = $2)
                 ORDER BY created_at DESC, id LIMIT $3 OFFSET $4",
                args![tenant, entity_id, page.limit, page.offset()],
            )
            .await?;
        let total = tx
            .number(
                "SELECT COUNT(*) FROM documents
                 WHERE tenant = $1 AND ($2 IS NULL OR entity_id = $2)",
                args![tenant, entity_id],
            )
            .await?;
        Page::read(&rows, total, read_document)
    }

    /// Whether there was such a one.
    pub async fn delete_document(&self, tenant: &str, id: &str) -> Result<bool, StoreError> {
        let gone = self
            .db
            .run(
                Scope::Tenant(tenant),
                "DELETE FROM documents WHERE tenant = $1 AND id = $2",
                args![tenant, id],
            )
            .await?;
        Ok(gone > 0)
    }
}

fn read_document(row: &Row) -> Result<Document, StoreError> {
    Ok(Document {
        id: row.text("id")?,
        entity_id: row.text("entity_id")?,
        department_id: row.text("department_id")?,
        title: row.text("title")?,
        content: row.text("content")?,
        created_at: row.int("created_at")?,
    })
}
