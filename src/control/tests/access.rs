//! Who may do what: every route of the router, and every way not to be the right one.

use super::*;
use crate::{
    clock,
    store::{
        Store,
        recordings::{NewRecording, RecordingSource, RecordingStatus},
    },
};

pub const SECRET: &str = "secret-of-the-identity-provider";

pub fn token(claims: &Value) -> String {
    let mut all = json!({"exp": clock::unix_ms() / 1000 + 600});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    crate::control::jwt::testing::hs256(SECRET, &all)
}

pub fn user(tenant: &str, sub: &str, role: &str) -> String {
    token(&json!({"sub": sub, "email": format!("{sub}@x.org"), "tenant": tenant, "role": role}))
}

/// A control endpoint with a LiveKit server, users' tokens, and its database at hand.
pub struct World {
    pub livekit: LiveKitDouble,
    pub control: Control,
    pub store: Store,
    directory: tempfile::TempDir,
}

impl World {
    pub async fn new(settings_of: impl FnOnce(&mut ControlSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let livekit = LiveKitDouble::start().await;
        let url = directory.path().join("control.db").display().to_string();
        let mut config = config(Some(livekit.config()), &url);
        config.settings.recordings_dir = directory.path().join("recordings");
        config.settings.jwt =
            Some(crate::config::control::JwtKeys::Hs256(SecretString::from(SECRET)));
        settings_of(&mut config.settings);
        let control = Control::start_with(config).await;
        let store = Store::open(&url).await.unwrap();
        Self { livekit, control, store, directory }
    }

    pub async fn send(
        &self,
        bearer: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Response {
        let mut request =
            self.control.client.request(method, format!("{}{path}", self.control.url));
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    pub async fn ask(
        &self,
        bearer: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let body = (!body.is_null()).then_some(body);
        let response = self.send(Some(bearer), method, path, body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn post_as(&self, bearer: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        self.ask(bearer, Method::POST, path, body).await
    }

    pub async fn get_as(&self, bearer: &str, path: &str) -> (StatusCode, Value) {
        self.ask(bearer, Method::GET, path, &Value::Null).await
    }

    /// A session of this user, in progress, recorded and transcribed by consent.
    pub async fn session(&self, bearer: &str) -> String {
        let (status, body) = self.post_as(bearer, "/api/sessions", &json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id = body["session"]["id"].as_str().unwrap().to_owned();
        let consent = json!({"consent": {"recording": true, "transcription": true}});
        let started = self.post_as(bearer, &format!("/api/sessions/{id}/start"), &consent).await;
        assert_eq!(started.0, StatusCode::OK, "{}", started.1);
        id
    }

    /// Reports items of this session, as its worker does.
    pub async fn report(&self, session: &str, items: Value) {
        let room = format!("session-{session}");
        let body = json!({"room": room, "startedAtUnixMs": 1_000_000, "items": items});
        assert_eq!(self.post_as(TOKEN, "/api/ingest", &body).await.0, StatusCode::OK);
    }

    pub async fn recording(&self, tenant: &str, session: &str, bytes: &[u8]) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let object_key = format!("recordings/sessions/{session}/{id}.mp4");
        let file = self.directory.path().join("recordings").join(&object_key);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
        let new = NewRecording {
            filename: format!("{id}.mp4"),
            id: id.clone(),
            object_key,
            track_type: "mixed".into(),
            source: RecordingSource::Egress,
            status: RecordingStatus::Complete,
            egress_id: None,
            encrypted: false,
            duration_ms: 1_000,
            file_size: bytes.len() as i64,
            created_at: 5,
            ended_at: Some(6),
        };
        self.store.add_recording(tenant, session, &new).await.unwrap();
        id
    }
}

/// One of everything that a route can be about, ann's of acme.
struct Things {
    session: String,
    recording: String,
    transcript: String,
    document: String,
    room: String,
}

impl Things {
    async fn make(world: &World) -> Self {
        let ann = user("acme", "ann", "participant");
        let session = world.session(&ann).await;
        let recording = world.recording("acme", &session, b"sound").await;
        let transcript = format!("SG_{}", uuid::Uuid::new_v4().simple());
        let mut said = segment(&transcript, "hello", 0);
        // Later than any erasure of hers in this test.
        said["spokenAtUnixMs"] = json!(clock::unix_ms() + 3_600_000);
        let report = json!({
            "room": format!("session-{session}"), "startedAtUnixMs": 1, "items": [said],
        });
        let worker = user("acme", "worker", "agent");
        let (status, answer) = world.post_as(&worker, "/api/ingest", &report).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let admin = user("acme", "boss", "admin");
        let document = json!({"title": "Hours", "content": "9 to 5"});
        let (_, added) = world.post_as(&admin, "/api/knowledge/documents", &document).await;
        let (_, voice) =
            world.post_as(&ann, "/api/voice-sessions", &json!({"agent_type": "diet"})).await;
        Self {
            session,
            recording,
            transcript,
            document: added["document"]["id"].as_str().unwrap().to_owned(),
            room: voice["room_name"].as_str().unwrap().to_owned(),
        }
    }

    fn fill(&self, path: &str) -> String {
        let id = match path {
            _ if path.starts_with("/api/sessions/{id}") => &self.session,
            _ if path.starts_with("/api/recordings/{id}") => &self.recording,
            _ if path.starts_with("/api/knowledge/documents/{id}") => &self.document,
            _ => "",
        };
        let filled = path
            .replace("{id}", id)
            .replace("{rid}", &self.recording)
            .replace("{tid}", &self.transcript)
            .replace("{room}", &self.room)
            .replace("{identity}", "ann");
        assert!(!filled.contains('{'), "{path}: this test does not know what to put there");
        filled
    }
}

struct Route {
    method: Method,
    path: String,
    access: String,
    body: Option<Value>,
}

fn table(document: &Value) -> Vec<Route> {
    let mut table = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = &operation["requestBody"]["content"];
            let schema = &content["application/json"]["schema"];
            let named = schema["$ref"].as_str().or_else(|| {
                schema["oneOf"].as_array()?.iter().find_map(|one| one["$ref"].as_str())
            });
            let body = named.map(|name| {
                let name = name.rsplit('/').next().unwrap();
                document["components"]["schemas"][name]["example"].clone()
            });
            assert!(!matches!(body, Some(Value::Null)), "{method} {path}: no example of its body");
            table.push(Route {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                access: operation["x-access"].as_str().expect("every route says for whom").into(),
                body,
            });
        }
    }
    table
}

async fn document(world: &World) -> Value {
    world.get_as(TOKEN, "/openapi.json").await.1
}

#[tokio::test]
async fn every_route_answers_each_caller_as_it_should() {
    let world = World::new(|_| {}).await;
    let expired = token(&json!({"sub": "ann", "tenant": "acme", "exp": 1}));
    let table = table(&document(&world).await);
    assert!(table.len() > 30);
    for Route { method, path, access, body } in &table {
        let things = Things::make(&world).await;
        let url = things.fill(&path.replace("{token}", "nothing"));
        let named = path.contains('{') && !path.contains("{identity}");
        let about = format!("{access} {method} {path}");
        let status = async |bearer: Option<&str>| {
            let answer = world.send(bearer, method.clone(), &url, body.as_ref()).await;
            let (status, kind) = (answer.status(), answer.headers().get("content-type").cloned());
            // A stream does not end: its head says enough.
            if kind.is_some_and(|kind| kind == "application/json") && !status.is_success() {
                let body: Value = answer.json().await.unwrap();
                return (status.as_u16(), body["code"].as_str().unwrap().to_owned());
            }
            (status.as_u16(), String::new())
        };
        let coded = |status: u16, code: &str| (status, code.to_owned());
        if access == "open" {
            assert_ne!(status(None).await.1, "FORBIDDEN", "{about}");
            continue;
        }
        assert_eq!(status(None).await, coded(401, "UNAUTHORIZED"), "{about}: nobody");
        assert_eq!(status(Some("wrong")).await, coded(401, "UNAUTHORIZED"), "{about}: wrong");
        assert_eq!(status(Some(&expired)).await, coded(401, "TOKEN_EXPIRED"), "{about}: expired");
        let (wrong_role, right) = match access.as_str() {
            "user" | "signed" => ("agent", user("acme", "ann", "participant")),
            "worker" => ("participant", user("acme", "worker", "agent")),
            "admin" => ("participant", user("acme", "boss", "admin")),
            other => panic!("{other}: no such access"),
        };
        let other_role = user("acme", "ann", wrong_role);
        assert_eq!(status(Some(&other_role)).await, coded(403, "FORBIDDEN"), "{about}: role");
        if named {
            let elsewhere = user("other", "ann", "admin");
            assert_eq!(status(Some(&elsewhere)).await.0, 404, "{about}: another tenant");
        }
        if access == "user" || access == "signed" {
            let bob = user("acme", "bob", "participant");
            if path.contains('{') {
                assert_eq!(status(Some(&bob)).await, coded(403, "FORBIDDEN"), "{about}: bob");
            }
        }
        let (found, code) = status(Some(&right)).await;
        let expected = if path.ends_with("/socket") { 426..427 } else { 200..300 };
        assert!(expected.contains(&found), "{about}: the right one gets {found} {code}");
    }
}

#[tokio::test]
async fn users_see_their_own_sessions_and_admins_see_all() {
    let world = World::new(|_| {}).await;
    let (ann, bob) = (user("acme", "ann", ""), user("acme", "bob", "participant"));
    let admin = user("acme", "boss", "admin");
    let id = world.session(&ann).await;
    world.session(&bob).await;
    let seen = async |bearer: &str| {
        let (_, list) = world.get_as(bearer, "/api/sessions").await;
        list["pagination"]["total"].as_u64().unwrap()
    };
    assert_eq!((seen(&ann).await, seen(&bob).await, seen(&admin).await), (1, 1, 2));
    assert_eq!(seen(&user("other", "boss", "admin")).await, 0);
    let (_, one) = world.get_as(&admin, &format!("/api/sessions/{id}")).await;
    assert_eq!(one["owner"], "ann");
}

#[tokio::test]
async fn api_keys_act_for_their_tenant_until_revoked() {
    use secrecy::ExposeSecret;
    let world = World::new(|_| {}).await;
    let (prefix, key) = crate::control::auth::new_key().unwrap();
    let row = crate::store::tenants::ApiKey {
        id: "1".into(),
        tenant: "acme".into(),
        prefix: prefix.clone(),
        hash: crate::control::auth::hash_of(key.expose_secret()),
        role: crate::store::tenants::Role::Agent,
        subject: String::new(),
        label: String::new(),
        created_at: 0,
        revoked_at: None,
    };
    world.store.create_key(&row).await.unwrap();
    let report = json!({"room": "r", "startedAtUnixMs": 1, "items": []});
    let key = key.expose_secret();
    assert_eq!(world.post_as(key, "/api/ingest", &report).await.0, StatusCode::OK);
    assert_error(&world.get_as(key, "/api/sessions").await, 403, "FORBIDDEN");
    world.store.revoke_key(&prefix, 1).await.unwrap();
    assert_error(&world.post_as(key, "/api/ingest", &report).await, 401, "UNAUTHORIZED");
}

#[tokio::test]
async fn a_key_set_is_fetched_cached_and_fetched_again_when_keys_rotate() {
    use crate::control::jwt::testing::{jwk, pair, rs256};
    let set = std::sync::Arc::new(parking_lot::Mutex::new((json!({"keys": []}), 0)));
    let served = set.clone();
    let app = axum::Router::new().route(
        "/jwks",
        axum::routing::get(async move || {
            let mut served = served.lock();
            served.1 += 1;
            served.0.to_string()
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    set.lock().0 = json!({"keys": [jwk(&pair(), "one")]});
    let world = World::new(|settings| {
        settings.jwt = Some(crate::config::control::JwtKeys::Rs256(url.parse().unwrap()));
        settings.jwt_audience = Some("antiphon".into());
    })
    .await;
    let exp = clock::unix_ms() / 1000 + 600;
    let claims = json!({"sub": "ann", "exp": exp, "aud": "antiphon"});
    let status = async |token: String| world.get_as(&token, "/api/sessions").await.0.as_u16();
    for _ in 0..3 {
        assert_eq!(status(rs256(&pair(), "one", &claims)).await, 200);
    }
    assert_eq!(set.lock().1, 1, "fetched once");
    assert_eq!(status(rs256(&pair(), "one", &json!({"sub": "ann", "exp": exp}))).await, 401);
    assert_eq!(status(user("acme", "ann", "admin")).await, 401, "HS256 is not this one's");
    // A key that is not known is looked for once, and then not for a while.
    for _ in 0..3 {
        assert_eq!(status(rs256(&pair(), "two", &claims)).await, 401);
    }
    assert!(set.lock().1 <= 2);
}

#[tokio::test]
async fn a_tenant_that_asks_too_fast_is_told_when_to_come_back() {
    let world = World::new(|settings| settings.rate_limit = 2).await;
    let ann = user("acme", "ann", "participant");
    let mut refused = None;
    for _ in 0..20 {
        let answer = world.send(Some(&ann), Method::GET, "/api/sessions", None).await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the limit is reached");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_error(&read(refused).await, 429, "TOO_MANY_ATTEMPTS");
    let bob = user("other", "bob", "participant");
    assert_eq!(world.get_as(&bob, "/api/sessions").await.0, StatusCode::OK);
}

#[tokio::test]
async fn only_pages_of_listed_origins_may_read_the_answers() {
    let world =
        World::new(|settings| settings.cors_origins = vec!["https://a.example".into()]).await;
    let url = format!("{}/api/sessions", world.control.url);
    let ask = async |method, origin: &str| {
        let request = world.control.client.request(method, &url).header("origin", origin);
        request.header("access-control-request-method", "POST").send().await.unwrap()
    };
    let preflight = ask(Method::OPTIONS, "https://a.example").await;
    assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "https://a.example");
    assert!(
        preflight.headers()["access-control-allow-headers"]
            .to_str()
            .unwrap()
            .contains("authorization")
    );
    let refused = ask(Method::GET, "https://a.example").await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], "https://a.example");
    for origin in ["https://b.example", "https://a.example.evil"] {
        let answer = ask(Method::OPTIONS, origin).await;
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
}
