//! Users' bearer tokens: JSON Web Tokens (RFC 7519) by HS256 or RS256 (RFC 7518 §3).
//!
//! Which of the two is the operator's choice: a token whose header names another is refused, so
//! that a public key is never taken for a secret.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{hmac, signature};
use serde::Deserialize;

/// Longer than any token that an identity provider makes.
const MAX_TOKEN: usize = 16 * 1024;
/// Clocks differ (RFC 7519 §4.1.4), in s.
const LEEWAY: i64 = 30;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    pub sub: String,
    #[serde(default)]
    pub email: String,
    #[serde(default)]
    pub tenant: String,
    #[serde(default)]
    pub role: String,
    pub exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    aud: Audience,
}

/// One or several (RFC 7519 §4.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not a token of ours.
    Invalid,
    Expired,
    /// Signed by a key that is not in the set; a newer set may have it.
    UnknownKey,
}

/// A public key of a key set (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaKey {
    pub kid: String,
    n: Vec<u8>,
    e: Vec<u8>,
}

/// What tokens are checked with.
#[derive(Debug)]
pub enum Keys<'a> {
    Hs256(&'a hmac::Key),
    Rs256(&'a [RsaKey]),
}

/// What the claims must say beside.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 §4.1.11); none is.
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

/// `now` in s since the Unix epoch.
pub fn verify(
    token: &str,
    keys: &Keys<'_>,
    expected: &Expected,
    now: i64,
) -> Result<Claims, Refusal> {
    if token.len() > MAX_TOKEN {
        return Err(Refusal::Invalid);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Invalid)?;
    let (header, payload) = signed.split_once('.').ok_or(Refusal::Invalid)?;
    let header: Header = part(header)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refusal::Invalid)?;
    if header.crit.is_some() {
        return Err(Refusal::Invalid);
    }
    match keys {
        Keys::Hs256(key) => {
            if header.alg != "HS256" {
                return Err(Refusal::Invalid);
            }
            hmac::verify(key, signed.as_bytes(), &signature).map_err(|_| Refusal::Invalid)?;
        }
        Keys::Rs256(keys) => {
            if header.alg != "RS256" {
                return Err(Refusal::Invalid);
            }
            let key = match &header.kid {
                Some(kid) => keys.iter().find(|key| key.kid == *kid).ok_or(Refusal::UnknownKey)?,
                None => keys.first().filter(|_| keys.len() == 1).ok_or(Refusal::Invalid)?,
            };
            signature::RsaPublicKeyComponents { n: &key.n, e: &key.e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature)
                .map_err(|_| Refusal::Invalid)?;
        }
    }
    let claims: Claims = part(payload)?;
    let issued = expected.issuer.is_none() || claims.iss == expected.issuer;
    let meant = expected.audience.as_ref().is_none_or(|expected| match &claims.aud {
        Audience::One(audience) => audience == expected,
        Audience::Many(audiences) => audiences.contains(expected),
    });
    let early = claims.nbf.is_some_and(|nbf| nbf > now.saturating_add(LEEWAY));
    if !issued || !meant || early || claims.sub.is_empty() {
        return Err(Refusal::Invalid);
    }
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err(Refusal::Expired);
    }
    Ok(claims)
}

fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::Invalid)?;
    serde_json::from_slice(&bytes).map_err(|_| Refusal::Invalid)
}

/// The RSA signing keys of a key set; others are passed over.
pub fn read_jwks(bytes: &[u8]) -> Option<Vec<RsaKey>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Key>,
    }
    #[derive(Deserialize)]
    struct Key {
        kty: String,
        #[serde(default)]
        kid: String,
        #[serde(default, rename = "use")]
        purpose: Option<String>,
        #[serde(default)]
        n: String,
        #[serde(default)]
        e: String,
    }
    let set: Set = serde_json::from_slice(bytes).ok()?;
    let keys = set.keys.into_iter().filter_map(|key| {
        let signs = key.kty == "RSA" && key.purpose.as_deref().is_none_or(|it| it == "sig");
        let (n, e) = (URL_SAFE_NO_PAD.decode(key.n).ok()?, URL_SAFE_NO_PAD.decode(key.e).ok()?);
        (signs && !n.is_empty() && !e.is_empty()).then_some(RsaKey { kid: key.kid, n, e })
    });
    Some(keys.take(100).collect())
}

#[cfg(test)]
pub mod testing {
    //! Tokens as an identity provider makes them.

    use ring::{rand::SystemRandom, signature::RsaKeyPair};
    use serde_json::{Value, json};

    use super::*;

    pub fn hs256(secret: &str, claims: &Value) -> String {
        let signed = signed_part(&json!({"alg": "HS256", "typ": "JWT"}), claims);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    pub fn signed_part(header: &Value, claims: &Value) -> String {
        let [header, claims] =
            [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        format!("{header}.{claims}")
    }

    pub fn rs256(pair: &RsaKeyPair, kid: &str, claims: &Value) -> String {
        let signed = signed_part(&json!({"alg": "RS256", "kid": kid}), claims);
        let mut signature = vec![0; pair.public().modulus_len()];
        let random = SystemRandom::new();
        pair.sign(&signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// As a provider publishes it.
    pub fn jwk(pair: &RsaKeyPair, kid: &str) -> Value {
        let public = signature::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid,
            "n": URL_SAFE_NO_PAD.encode(public.n), "e": URL_SAFE_NO_PAD.encode(public.e),
        })
    }

    /// A key of these tests alone.
    pub fn pair() -> RsaKeyPair {
        RsaKeyPair::from_pkcs8(include_bytes!("testing_rsa.pk8")).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{testing::*, *};

    const NOW: i64 = 1_000_000;

    fn claims() -> Value {
        json!({"sub": "ann", "email": "ann@x.org", "tenant": "acme", "role": "admin",
               "exp": NOW + 60, "iss": "https://id", "aud": ["other", "antiphon"]})
    }

    fn expected() -> Expected {
        Expected { issuer: Some("https://id".into()), audience: Some("antiphon".into()) }
    }

    fn hs(token: &str) -> Result<Claims, Refusal> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"sesame");
        verify(token, &Keys::Hs256(&key), &expected(), NOW)
    }

    #[test]
    fn a_token_signed_with_the_secret_says_who_it_is() {
        let claims = hs(&hs256("sesame", &claims())).unwrap();
        assert_eq!((&*claims.sub, &*claims.tenant, &*claims.role), ("ann", "acme", "admin"));
    }

    #[test]
    fn any_claim_that_is_wrong_refuses_the_token() {
        for (claim, value, refusal) in [
            ("exp", json!(NOW - 31), Refusal::Expired),
            ("exp", json!("soon"), Refusal::Invalid),
            ("nbf", json!(NOW + 31), Refusal::Invalid),
            ("iss", json!("https://other"), Refusal::Invalid),
            ("aud", json!("other"), Refusal::Invalid),
            ("sub", json!(""), Refusal::Invalid),
        ] {
            let mut wrong = claims();
            wrong[claim] = value;
            assert_eq!(hs(&hs256("sesame", &wrong)), Err(refusal), "{claim}");
        }
        let mut without = claims();
        without.as_object_mut().unwrap().remove("exp");
        assert_eq!(hs(&hs256("sesame", &without)), Err(Refusal::Invalid));
    }

    #[test]
    fn the_header_does_not_choose_the_algorithm() {
        let bare = signed_part(&json!({"alg": "none"}), &claims());
        let rs = rs256(&pair(), "a", &claims());
        for token in [format!("{bare}."), format!("{bare}.AAAA"), rs, hs256("guess", &claims())] {
            assert_eq!(hs(&token), Err(Refusal::Invalid));
        }
        // A public key taken for a secret.
        let keys = read_jwks(json!({"keys": [jwk(&pair(), "a")]}).to_string().as_bytes()).unwrap();
        let forged = hs256(std::str::from_utf8(b"sesame").unwrap(), &claims());
        let answer = verify(&forged, &Keys::Rs256(&keys), &expected(), NOW);
        assert_eq!(answer, Err(Refusal::Invalid));
        for garbage in ["", ".", "..", "a.b.c", "é.é.é", &"x".repeat(20_000)] {
            assert_eq!(hs(garbage), Err(Refusal::Invalid));
        }
    }

    #[test]
    fn a_key_set_verifies_by_key_id() {
        let set = json!({"keys": [{"kty": "EC", "kid": "e"}, jwk(&pair(), "a")]}).to_string();
        let keys = read_jwks(set.as_bytes()).unwrap();
        assert_eq!(keys.len(), 1);
        let check = |token: &str| verify(token, &Keys::Rs256(&keys), &expected(), NOW);
        let token = rs256(&pair(), "a", &claims());
        assert_eq!(check(&token).unwrap().sub, "ann");
        assert_eq!(check(&rs256(&pair(), "b", &claims())), Err(Refusal::UnknownKey));
        let other = rs256(&pair(), "a", &json!({"sub": "bob", "exp": NOW + 60}));
        let spliced =
            format!("{}.{}", other.rsplit_once('.').unwrap().0, token.rsplit_once('.').unwrap().1);
        assert_eq!(check(&spliced), Err(Refusal::Invalid));
    }
}
