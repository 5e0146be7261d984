//! Who is asking, and whether they may.
//!
//! A bearer is the service token, an API key (`ak_…`) or a user's JSON Web Token. Which routes a
//! role may use is said where the routes are put together (`super::router`); whose session it is,
//! [`Principal::may_use`] says.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use ring::{digest, hmac};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use url::Url;

use super::{
    app::App,
    error::{ApiError, Code},
    jwt::{self, Expected, Keys, Refusal, RsaKey},
};
use crate::{
    clock,
    store::{
        DEFAULT_TENANT, Session, Store, StoreError,
        tenants::{Role, Tenant},
    },
};

/// How every API key begins.
const KEY_MARK: &str = "ak_";
const PREFIX_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
/// A revoked tenant is let in no longer than this.
const TENANT_TTL: Duration = Duration::from_secs(10);
const MAX_TENANTS: usize = 10_000;
/// A key set is fetched again after this long.
const JWKS_TTL: Duration = Duration::from_mins(10);
/// And for a key that it does not have, not more often than this.
const JWKS_PAUSE: Duration = Duration::from_secs(30);
const JWKS_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_JWKS: usize = 256 * 1024;

/// Put into the request by [`require`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub tenant: String,
    /// A user's id, or what stands for nobody in particular.
    pub subject: String,
    pub email: String,
    pub role: Role,
    /// Shown the service token: reports rooms of any tenant.
    pub service: bool,
    /// For the audit: a user, a key, the service.
    pub actor: String,
}

impl Principal {
    fn service() -> Self {
        Self {
            tenant: DEFAULT_TENANT.into(),
            subject: String::new(),
            email: String::new(),
            role: Role::Admin,
            service: true,
            actor: "service".into(),
        }
    }

    /// Whether a session of this tenant is theirs to use.
    pub fn may_use(&self, session: &Session) -> bool {
        match self.role {
            Role::Admin => true,
            Role::Participant => !self.subject.is_empty() && session.owner == self.subject,
            Role::Agent => false,
        }
    }

    /// Whose sessions they see in lists: None: everybody's.
    pub fn sees(&self) -> Option<String> {
        (self.role == Role::Participant).then(|| self.subject.clone())
    }
}

/// Which roles a group of routes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No bearer: health, docs, links, webhooks (their own signature).
    Open,
    /// Users, about what is theirs.
    User,
    /// As [`Access::User`], or with a signed address.
    Signed,
    /// Workers.
    Worker,
    Admin,
}

impl Access {
    /// As the OpenAPI document says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::User => "user",
            Self::Signed => "signed",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }

    pub fn allows(self, role: Role) -> bool {
        match self {
            Self::Open => true,
            Self::User | Self::Signed => role != Role::Agent,
            Self::Worker => role != Role::Participant,
            Self::Admin => role == Role::Admin,
        }
    }
}

/// A tenant's row, if it has one, and when it was read.
type Known = (Option<Arc<Tenant>>, Instant);

/// How bearers are checked.
#[derive(Debug)]
pub struct Auth {
    service: SecretString,
    users: Option<Users>,
    expected: Expected,
    /// What is known of tenants, and since when.
    tenants: Mutex<HashMap<String, Known>>,
    tenant_ttl: Duration,
}

#[derive(Debug)]
enum Users {
    Hs256(hmac::Key),
    Rs256(Jwks),
}

/// How users' tokens are checked.
#[derive(Debug, Clone)]
pub enum UserKeys {
    Hs256(SecretString),
    Rs256(Url),
}

impl Auth {
    pub fn new(service: SecretString, users: Option<UserKeys>, expected: Expected) -> Self {
        let users = users.map(|keys| match keys {
            UserKeys::Hs256(secret) => {
                Users::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()))
            }
            UserKeys::Rs256(url) => Users::Rs256(Jwks::new(url)),
        });
        Self { service, users, expected, tenants: Mutex::default(), tenant_ttl: TENANT_TTL }
    }

    /// For what the endpoint signs itself.
    pub fn signing_key(&self, purpose: &str) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.service.expose_secret().as_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, purpose.as_bytes()).as_ref())
    }

    pub async fn principal(&self, store: &Store, bearer: &str) -> Result<Principal, ApiError> {
        if bool::from(bearer.as_bytes().ct_eq(self.service.expose_secret().as_bytes())) {
            return Ok(Principal::service());
        }
        let principal = if bearer.starts_with(KEY_MARK) {
            by_key(store, bearer).await?
        } else {
            self.by_token(bearer).await?
        };
        let tenant = self.tenant(store, &principal.tenant).await?;
        if tenant.is_some_and(|tenant| tenant.revoked_at.is_some()) {
            return Err(Code::Unauthorized.into());
        }
        Ok(principal)
    }

    async fn by_token(&self, bearer: &str) -> Result<Principal, ApiError> {
        let now = clock::unix_ms() / 1000;
        let checked = match &self.users {
            None => Err(Refusal::Invalid),
            Some(Users::Hs256(key)) => jwt::verify(bearer, &Keys::Hs256(key), &self.expected, now),
            Some(Users::Rs256(jwks)) => {
                let keys = jwks.keys(false).await;
                match jwt::verify(bearer, &Keys::Rs256(&keys), &self.expected, now) {
                    Err(Refusal::UnknownKey) => {
                        let keys = jwks.keys(true).await;
                        jwt::verify(bearer, &Keys::Rs256(&keys), &self.expected, now)
                    }
                    checked => checked,
                }
            }
        };
        let claims = checked.map_err(|refusal| match refusal {
            Refusal::Expired => Code::TokenExpired,
            Refusal::Invalid | Refusal::UnknownKey => Code::Unauthorized,
        })?;
        let role = match claims.role.as_str() {
            "" => Role::Participant,
            role => Role::parse(role).ok_or(Code::Unauthorized)?,
        };
        let tenant = match claims.tenant {
            tenant if tenant.is_empty() => DEFAULT_TENANT.to_owned(),
            tenant => tenant,
        };
        if !is_tenant_id(&tenant) || claims.sub.len() > 256 || claims.email.len() > 256 {
            return Err(Code::Unauthorized.into());
        }
        Ok(Principal {
            tenant,
            actor: format!("user:{}", claims.sub),
            subject: claims.sub,
            email: claims.email,
            role,
            service: false,
        })
    }

    /// `None`: it has no row of its own.
    pub async fn tenant(&self, store: &Store, id: &str) -> Result<Option<Arc<Tenant>>, StoreError> {
        let now = Instant::now();
        if let Some((tenant, since)) = self.tenants.lock().get(id)
            && now.duration_since(*since) < self.tenant_ttl
        {
            return Ok(tenant.clone());
        }
        let tenant = store.tenant(id).await?.map(Arc::new);
        let mut tenants = self.tenants.lock();
        if tenants.len() >= MAX_TENANTS {
            tenants.retain(|_, (_, since)| now.duration_since(*since) < TENANT_TTL);
        }
        if tenants.len() < MAX_TENANTS {
            tenants.insert(id.to_owned(), (tenant.clone(), now));
        }
        Ok(tenant)
    }
}

/// `*` is the store's name for all of them.
pub fn is_tenant_id(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= 64 && id.chars().all(fits)
}

async fn by_key(store: &Store, bearer: &str) -> Result<Principal, ApiError> {
    let unknown = || ApiError::new(Code::Unauthorized);
    let prefix = prefix_of(bearer).ok_or_else(unknown)?;
    let key = store.key_by_prefix(prefix).await?.ok_or_else(unknown)?;
    let same = bool::from(key.hash.as_bytes().ct_eq(hash_of(bearer).as_bytes()));
    if !same || key.revoked_at.is_some() {
        return Err(unknown());
    }
    Ok(Principal {
        tenant: key.tenant,
        subject: key.subject,
        email: String::new(),
        role: key.role,
        service: false,
        actor: format!("key:{}", key.prefix),
    })
}

/// A new API key and its public part: 256 random bits behind a prefix to find it by.
pub fn new_key() -> Option<(String, SecretString)> {
    let random = ring::rand::SystemRandom::new();
    let mut bytes = [0; PREFIX_BYTES + SECRET_BYTES];
    ring::rand::SecureRandom::fill(&random, &mut bytes).ok()?;
    let (prefix, secret) = bytes.split_at(PREFIX_BYTES);
    let prefix = hex(prefix);
    let key = format!("{KEY_MARK}{prefix}_{}", hex(secret));
    Some((prefix, key.into()))
}

/// What is stored of a key.
pub fn hash_of(key: &str) -> String {
    hex(digest::digest(&digest::SHA256, key.as_bytes()).as_ref())
}

fn prefix_of(key: &str) -> Option<&str> {
    let (prefix, secret) = key.strip_prefix(KEY_MARK)?.split_once('_')?;
    (prefix.len() == 2 * PREFIX_BYTES && secret.len() == 2 * SECRET_BYTES).then_some(prefix)
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A provider's key set, kept until it is old or lacks a key.
#[derive(Debug)]
struct Jwks {
    url: Url,
    client: reqwest::Client,
    /// Taken by one at a time: many requests at once fetch it once.
    state: tokio::sync::Mutex<JwksState>,
}

#[derive(Debug, Default)]
struct JwksState {
    keys: Arc<[RsaKey]>,
    tried: Option<Instant>,
}

impl Jwks {
    fn new(url: Url) -> Self {
        Self { url, client: reqwest::Client::new(), state: tokio::sync::Mutex::default() }
    }

    /// The old ones for as long as the provider does not answer.
    async fn keys(&self, missed: bool) -> Arc<[RsaKey]> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let age = state.tried.map(|tried| now.duration_since(tried));
        let pause = if missed || state.keys.is_empty() { JWKS_PAUSE } else { JWKS_TTL };
        if age.is_none_or(|age| age >= pause) {
            state.tried = Some(now);
            match self.fetch().await {
                Ok(keys) => state.keys = keys.into(),
                Err(why) => tracing::warn!(why, "the key set for users' tokens cannot be fetched"),
            }
        }
        state.keys.clone()
    }

    async fn fetch(&self) -> Result<Vec<RsaKey>, String> {
        let get = self.client.get(self.url.clone()).timeout(JWKS_TIMEOUT);
        let without_url = |error: reqwest::Error| error.without_url().to_string();
        let mut answer =
            get.send().await.and_then(reqwest::Response::error_for_status).map_err(without_url)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(without_url)? {
            if body.len() + chunk.len() > MAX_JWKS {
                return Err("it is too large".into());
            }
            body.extend_from_slice(&chunk);
        }
        let keys = jwt::read_jwks(&body).ok_or("it is no key set")?;
        if keys.is_empty() { Err("it has no RSA key".into()) } else { Ok(keys) }
    }
}

/// Lets a request through whose bearer may use the route, within its tenant's limit.
pub async fn require(
    State((app, access)): State<(App, Access)>,
    mut request: Request,
    next: Next,
) -> Response {
    if access == Access::Signed && super::recordings::is_signed(&request) {
        // The handler looks at the signature.
        return next.run(request).await;
    }
    match admit(&app, access, request.headers()).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn admit(app: &App, access: Access, headers: &HeaderMap) -> Result<Principal, ApiError> {
    let bearer = bearer(headers).ok_or(ApiError::new(Code::Unauthorized))?;
    let principal = app.auth.principal(&app.store, bearer).await?;
    if !access.allows(principal.role) {
        return Err(Code::Forbidden.into());
    }
    // Workers' reports are held back by their acknowledgements.
    if access != Access::Worker {
        let own = app.auth.tenant(&app.store, &principal.tenant).await?;
        let limit = own.and_then(|tenant| tenant.rate_limit);
        app.limits.take(&principal.tenant, limit)?;
    }
    Ok(principal)
}

/// From the header; from a browser's WebSocket, which cannot set one, as the subprotocol after
/// `bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then_some(token.trim());
    }
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let mut offered = offered.split(',').map(str::trim);
    offered.next().filter(|first| *first == "bearer")?;
    offered.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_read_from_the_header_or_the_subprotocol() {
        let read = |name: header::HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read(header::AUTHORIZATION, "bearer secret").as_deref(), Some("secret"));
        assert_eq!(read(header::SEC_WEBSOCKET_PROTOCOL, "bearer, t.o.k").as_deref(), Some("t.o.k"));
        for wrong in ["Bearer", "Basic secret", "secret"] {
            assert_eq!(read(header::AUTHORIZATION, wrong), None);
        }
        assert_eq!(read(header::SEC_WEBSOCKET_PROTOCOL, "chat, t.o.k"), None);
    }

    #[tokio::test]
    async fn only_the_whole_service_token_is_let_through() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let auth = Auth::new("secret".into(), None, Expected::default());
        assert!(auth.principal(&store, "secret").await.unwrap().service);
        for wrong in ["", "secre", "secrets", "ak_", "ak_x_y", "a.b.c"] {
            assert_eq!(auth.principal(&store, wrong).await, Err(Code::Unauthorized.into()));
        }
    }

    #[tokio::test]
    async fn a_key_is_known_by_its_hash_until_it_or_its_tenant_is_revoked() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let auth = Auth::new("secret".into(), None, Expected::default());
        let (prefix, secret) = new_key().unwrap();
        let key = crate::store::tenants::ApiKey {
            id: "1".into(),
            tenant: "acme".into(),
            prefix: prefix.clone(),
            hash: hash_of(secret.expose_secret()),
            role: Role::Agent,
            subject: String::new(),
            label: String::new(),
            created_at: 0,
            revoked_at: None,
        };
        store.create_key(&key).await.unwrap();
        let found = auth.principal(&store, secret.expose_secret()).await.unwrap();
        assert_eq!((&*found.tenant, found.role), ("acme", Role::Agent));
        let mut other = secret.expose_secret().to_owned();
        let last = if other.pop() == Some('0') { '1' } else { '0' };
        other.push(last);
        assert!(auth.principal(&store, &other).await.is_err());
        store.revoke_key(&prefix, 1).await.unwrap();
        assert!(auth.principal(&store, secret.expose_secret()).await.is_err());
    }

    #[tokio::test]
    async fn a_revoked_tenant_is_shut_out_within_seconds() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let users = Some(UserKeys::Hs256("k".into()));
        let mut auth = Auth::new("s".into(), users, Expected::default());
        let tenant = Tenant {
            id: "acme".into(),
            name: "Acme".into(),
            retention_days: 30,
            rate_limit: None,
            redact: false,
            created_at: 0,
            revoked_at: None,
        };
        store.create_tenant(&tenant).await.unwrap();
        let exp = clock::unix_ms() / 1000 + 100;
        let claims = serde_json::json!({"sub": "ann", "tenant": "acme", "exp": exp});
        let token = jwt::testing::hs256("k", &claims);
        assert!(auth.principal(&store, &token).await.is_ok());
        store.revoke_tenant("acme", 1).await.unwrap();
        assert!(auth.principal(&store, &token).await.is_ok(), "known for a while");
        auth.tenant_ttl = Duration::ZERO;
        assert!(auth.principal(&store, &token).await.is_err());
    }
}
