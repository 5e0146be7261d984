//! Who asks: an API key, or a service account that signs for itself.
//!
//! A service account needs no token of Google's: a JWT that it signs with its own key lets it in
//! (<https://google.aip.dev/auth/4111>).

use std::fmt;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

/// Whom the token is for, whatever the region.
const AUDIENCE: &str = "https://speech.googleapis.com/";
/// The longest that is taken: 1 h.
const LIFETIME_S: i64 = 3_600;
/// A token that is about to end is not used: 5 min.
const SPARE_S: i64 = 300;

/// Why a key cannot be used; without the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("the service account's file is not one: {0}")]
    File(&'static str),
    #[error("the service account's private key cannot be read")]
    Key,
    #[error("the API key has characters that no header can carry")]
    Header,
}

pub enum Credentials {
    ApiKey(HeaderValue),
    ServiceAccount(Box<ServiceAccount>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ApiKey(_) => "ApiKey",
            Self::ServiceAccount(_) => "ServiceAccount",
        })
    }
}

pub struct ServiceAccount {
    project: String,
    email: String,
    key_id: String,
    key: RsaKeyPair,
    /// Until when it is good, in s since the Unix epoch.
    token: Mutex<Option<(i64, HeaderValue)>>,
}

/// A key file as the console hands it out.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    project_id: String,
    #[serde(default)]
    private_key_id: String,
    client_email: String,
    private_key: SecretString,
}

impl Credentials {
    /// `key`: an API key, or the JSON of a service account.
    pub fn new(key: &SecretString) -> Result<Self, CredentialsError> {
        let text = key.expose_secret().trim();
        if !text.starts_with('{') {
            let mut value = HeaderValue::from_str(text).map_err(|_| CredentialsError::Header)?;
            value.set_sensitive(true);
            return Ok(Self::ApiKey(value));
        }
        let file: File = serde_json::from_str(text)
            .map_err(|_| CredentialsError::File("client_email or private_key is missing"))?;
        let key = RsaKeyPair::from_pkcs8(&der(file.private_key.expose_secret())?)
            .map_err(|_| CredentialsError::Key)?;
        Ok(Self::ServiceAccount(Box::new(ServiceAccount {
            project: file.project_id,
            email: file.client_email,
            key_id: file.private_key_id,
            key,
            token: Mutex::new(None),
        })))
    }

    /// The service account's own project.
    pub fn project(&self) -> Option<&str> {
        match self {
            Self::ApiKey(_) => None,
            Self::ServiceAccount(account) => {
                Some(&account.project).filter(|it| !it.is_empty()).map(String::as_str)
            }
        }
    }

    /// The header that lets the caller in at `now`, in s since the Unix epoch.
    pub fn header(&self, now: i64) -> Result<(HeaderName, HeaderValue), CredentialsError> {
        match self {
            Self::ApiKey(key) => Ok((HeaderName::from_static("x-goog-api-key"), key.clone())),
            Self::ServiceAccount(account) => Ok((http::header::AUTHORIZATION, account.token(now)?)),
        }
    }
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServiceAccount")
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

impl ServiceAccount {
    fn token(&self, now: i64) -> Result<HeaderValue, CredentialsError> {
        let mut token = self.token.lock();
        if let Some((until, value)) = &*token
            && now + SPARE_S < *until
        {
            return Ok(value.clone());
        }
        let until = now + LIFETIME_S;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.sign(now, until)?))
            .map_err(|_| CredentialsError::Header)?;
        value.set_sensitive(true);
        *token = Some((until, value.clone()));
        Ok(value)
    }

    /// RFC 7515 with RS256.
    fn sign(&self, now: i64, until: i64) -> Result<String, CredentialsError> {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_id});
        let claims = json!({
            "iss": self.email, "sub": self.email, "aud": AUDIENCE, "iat": now, "exp": until,
        });
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| CredentialsError::Key)?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// What is between the lines of a PEM (RFC 7468).
fn der(pem: &str) -> Result<Vec<u8>, CredentialsError> {
    let lines = pem.lines().map(str::trim).filter(|line| !line.starts_with('-'));
    BASE64_STANDARD.decode(lines.collect::<String>()).map_err(|_| CredentialsError::Key)
}

#[cfg(test)]
mod tests {
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    const KEY: &[u8] = include_bytes!("../../control/testing_rsa.pk8");

    fn account() -> Credentials {
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64_STANDARD.encode(KEY)
        );
        let file = json!({
            "type": "service_account", "project_id": "acme", "private_key_id": "k1",
            "client_email": "a@acme.iam.gserviceaccount.com", "private_key": pem,
        });
        Credentials::new(&file.to_string().into()).unwrap()
    }

    #[test]
    fn a_service_account_signs_for_itself_and_its_token_is_used_until_it_is_old() {
        let account = account();
        assert_eq!(account.project(), Some("acme"));
        let (name, value) = account.header(1_000_000).unwrap();
        assert!(name == "authorization" && value.is_sensitive());
        let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let public = RsaKeyPair::from_pkcs8(KEY).unwrap().public().as_ref().to_owned();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
            .verify(signed.as_bytes(), &signature)
            .unwrap();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!((&claims["aud"], &claims["exp"]), (&json!(AUDIENCE), &json!(1_003_600)));

        let same = |at: i64| account.header(at).unwrap().1 == value;
        assert!(same(1_003_000) && !same(1_003_400));
        assert_eq!(format!("{account:?}"), "ServiceAccount");
    }

    #[test]
    fn a_key_that_cannot_be_used_is_named_without_it() {
        let (name, value) = Credentials::new(&"AIza1".into()).unwrap().header(0).unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-goog-api-key", "AIza1"));
        let error = Credentials::new(&"{\"private_key\":\"hush\"}".into()).unwrap_err();
        assert!(!error.to_string().contains("hush"));
        let file = r#"{"client_email":"a","private_key":"hush"}"#;
        assert_eq!(Credentials::new(&file.into()).unwrap_err(), CredentialsError::Key);
    }
}
