//! `antiphon tenant` and `antiphon key`: who may use the control endpoint.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    cli::{Exit, fail, say},
    clock,
    config::Setup,
    control::auth::{hash_of, is_tenant_id, new_key},
    store::{
        Store, StoreError,
        tenants::{ApiKey, Role, Tenant},
    },
};

/// Tenants of the control endpoint: each sees its own sessions alone.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon tenant create acme --name \"Acme Inc\" --retention-days 30\n  \
    antiphon tenant list --json\n  \
    antiphon tenant revoke acme")]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum TenantCommand {
    /// Make a tenant
    Create {
        /// Letters, digits, -, _ and . (claim `tenant` of its users' tokens)
        #[arg(value_parser = tenant_id)]
        id: String,
        /// For people
        #[arg(long)]
        name: Option<String>,
        /// How long its sessions are kept: 30, 90 or 365
        #[arg(long, default_value = "90", value_parser = days)]
        retention_days: u32,
        /// Requests a second; without it ANTIPHON_RATE_LIMIT
        #[arg(long)]
        rate_limit: Option<u32>,
        /// Take e-mail addresses and long numbers out of stored transcripts
        #[arg(long)]
        redact: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List tenants
    List {
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Refuse a tenant's keys and tokens from now on; its data stays
    Revoke {
        #[arg(value_parser = tenant_id)]
        id: String,
    },
}

/// API keys of the control endpoint.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon key create --tenant acme --role admin\n  \
    antiphon key list --tenant acme\n  \
    antiphon key revoke 0a1b2c3d4e5f")]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum KeyCommand {
    /// Make a key; it is shown this once
    Create {
        #[arg(long, default_value = "default", value_parser = tenant_id)]
        tenant: String,
        /// participant (needs --subject), agent (a worker) or admin
        #[arg(long, default_value = "admin", value_parser = role)]
        role: Role,
        /// The user it stands for
        #[arg(long)]
        subject: Option<String>,
        /// What it is for
        #[arg(long, default_value = "")]
        label: String,
        /// Print one JSON object: id, tenant, role, key
        #[arg(long)]
        json: bool,
    },
    /// List a tenant's keys, without their secrets
    List {
        #[arg(long, default_value = "default", value_parser = tenant_id)]
        tenant: String,
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Refuse a key from now on
    Revoke {
        /// Its id or prefix
        id: String,
    },
}

fn tenant_id(text: &str) -> Result<String, String> {
    if is_tenant_id(text) {
        return Ok(text.to_owned());
    }
    Err("up to 64 letters, digits, -, _ and .".into())
}

fn days(text: &str) -> Result<u32, String> {
    let days = text.parse().ok().filter(|days| [30, 90, 365].contains(days));
    days.ok_or_else(|| "30, 90 or 365".into())
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "participant, agent or admin".into())
}

pub async fn run_tenant(setup: Setup, args: TenantArgs) -> Exit {
    with_store(&setup, async |store| match args.command {
        TenantCommand::Create { id, name, retention_days, rate_limit, redact, json } => {
            let tenant = Tenant {
                name: name.unwrap_or_else(|| id.clone()),
                id,
                retention_days,
                rate_limit,
                redact,
                created_at: clock::unix_ms(),
                revoked_at: None,
            };
            if !store.create_tenant(&tenant).await? {
                fail(&format_args!("there is a tenant {} already", tenant.id));
                return Ok(Exit::Faults);
            }
            if json {
                say(&tenant_json(&tenant));
            } else {
                say(&format_args!("made the tenant {}", tenant.id));
            }
            Ok(Exit::Done)
        }
        TenantCommand::List { json } => {
            let tenants = store.tenants().await?;
            if json {
                say(&tenants.iter().map(tenant_json).collect::<Value>());
            } else {
                for tenant in tenants {
                    let revoked = if tenant.revoked_at.is_some() { "  revoked" } else { "" };
                    say(&format_args!(
                        "{}  {}  kept {} days{revoked}",
                        tenant.id, tenant.name, tenant.retention_days
                    ));
                }
            }
            Ok(Exit::Done)
        }
        TenantCommand::Revoke { id } => {
            Ok(revoked("tenant", &id, store.revoke_tenant(&id, clock::unix_ms()).await?))
        }
    })
    .await
}

pub async fn run_key(setup: Setup, args: KeyArgs) -> Exit {
    with_store(&setup, async |store| match args.command {
        KeyCommand::Create { tenant, role, subject, label, json } => {
            if role == Role::Participant && subject.is_none() {
                fail(&"a participant's key stands for a user: give --subject");
                return Ok(Exit::Usage);
            }
            let Some((prefix, secret)) = new_key() else {
                fail(&"the system gives no random numbers");
                return Ok(Exit::Usage);
            };
            let key = ApiKey {
                id: uuid::Uuid::new_v4().to_string(),
                tenant,
                prefix,
                hash: hash_of(secret.expose_secret()),
                role,
                subject: subject.unwrap_or_default(),
                label,
                created_at: clock::unix_ms(),
                revoked_at: None,
            };
            store.create_key(&key).await?;
            if json {
                let mut shown = key_json(&key);
                shown["key"] = secret.expose_secret().into();
                say(&shown);
            } else {
                say(&secret.expose_secret());
            }
            Ok(Exit::Done)
        }
        KeyCommand::List { tenant, json } => {
            let keys = store.keys(&tenant).await?;
            if json {
                say(&keys.iter().map(key_json).collect::<Value>());
            } else {
                for key in keys {
                    let revoked = if key.revoked_at.is_some() { "  revoked" } else { "" };
                    say(&format_args!(
                        "{}  {}  {}{revoked}",
                        key.prefix,
                        key.role.as_str(),
                        key.label
                    ));
                }
            }
            Ok(Exit::Done)
        }
        KeyCommand::Revoke { id } => {
            Ok(revoked("key", &id, store.revoke_key(&id, clock::unix_ms()).await?))
        }
    })
    .await
}

fn revoked(what: &str, id: &str, done: bool) -> Exit {
    if done {
        say(&format_args!("revoked the {what} {id}"));
        return Exit::Done;
    }
    fail(&format_args!("there is no {what} {id} that is not revoked"));
    Exit::Faults
}

async fn with_store(
    setup: &Setup,
    work: impl AsyncFnOnce(&Store) -> Result<Exit, StoreError>,
) -> Exit {
    let store = match Store::open(setup.config.database_url.expose_secret()).await {
        Ok(store) => store,
        Err(error) => {
            fail(&error);
            return Exit::Server;
        }
    };
    let done = work(&store).await;
    store.close().await;
    done.unwrap_or_else(|error| {
        fail(&error);
        Exit::Server
    })
}

fn tenant_json(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id, "name": tenant.name, "retentionDays": tenant.retention_days,
        "rateLimit": tenant.rate_limit, "redact": tenant.redact,
        "revoked": tenant.revoked_at.is_some(),
    })
}

fn key_json(key: &ApiKey) -> Value {
    json!({
        "id": key.id, "tenant": key.tenant, "prefix": key.prefix, "role": key.role.as_str(),
        "subject": key.subject, "label": key.label, "revoked": key.revoked_at.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Needs, Sources};

    #[tokio::test]
    async fn a_key_that_is_made_opens_and_revoked_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let url = directory.path().join("a.db").display().to_string();
        let vars = [("ANTIPHON_DATABASE_URL".to_owned(), url.clone())].into();
        let sources = Sources { vars, ..Sources::default() };
        let setup = Setup::gather(&sources, Needs::default()).unwrap();
        let create = KeyCommand::Create {
            tenant: "acme".into(),
            role: Role::Agent,
            subject: None,
            label: "worker".into(),
            json: true,
        };
        assert_eq!(run_key(setup.clone(), KeyArgs { command: create }).await, Exit::Done);
        let store = Store::open(&url).await.unwrap();
        let keys = store.keys("acme").await.unwrap();
        assert_eq!((keys.len(), keys[0].role), (1, Role::Agent));
        let revoke = || KeyArgs { command: KeyCommand::Revoke { id: keys[0].prefix.clone() } };
        assert_eq!(run_key(setup.clone(), revoke()).await, Exit::Done);
        assert_eq!(run_key(setup, revoke()).await, Exit::Faults);
    }
}
