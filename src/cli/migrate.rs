//! `antiphon migrate`: brings the database to this version's schema.

use secrecy::ExposeSecret;
use serde_json::json;

use crate::{
    cli::{Exit, fail, say},
    config::Setup,
    store::Store,
};

/// Brings the database to this version's schema.
///
/// `antiphon control` does so by itself. Run this before it where the control endpoint's own role
/// may not change tables: with ANTIPHON_DATABASE_URL for a role that owns them.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon migrate\n  \
    ANTIPHON_DATABASE_URL=postgres://owner@db/antiphon antiphon migrate --json")]
pub struct MigrateArgs {
    /// Print one JSON object: schemaVersion
    #[arg(long)]
    json: bool,
}

pub async fn run(setup: Setup, args: MigrateArgs) -> Exit {
    let url = setup.config.database_url.expose_secret();
    match Store::open(url).await {
        Ok(store) => {
            store.close().await;
            let version = Store::schema_version();
            if args.json {
                say(&json!({ "schemaVersion": version }));
            } else {
                say(&format_args!("the database has schema {version}"));
            }
            Exit::Done
        }
        Err(error) => {
            fail(&error);
            Exit::Server
        }
    }
}
