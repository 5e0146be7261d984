//! Who is asking.
//!
//! One service token for all of `/api` today; whoever shows it acts for the default tenant.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::{
    app::App,
    error::{ApiError, Code},
};
use crate::store::DEFAULT_TENANT;

/// Put into the request by [`require`]; every handler reads the tenant from it.
#[derive(Debug, Clone)]
pub struct Principal {
    pub tenant: String,
}

/// Lets a request through that shows the service token.
pub async fn require(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if !shows(request.headers(), &app.token) {
        return ApiError::new(Code::Unauthorized).into_response();
    }
    request.extensions_mut().insert(Principal { tenant: DEFAULT_TENANT.into() });
    next.run(request).await
}

/// Compares in constant time, so that the token cannot be guessed byte by byte.
fn shows(headers: &HeaderMap, token: &SecretString) -> bool {
    let Some((scheme, shown)) = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
    else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer")
        && bool::from(shown.trim().as_bytes().ct_eq(token.expose_secret().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_as_a_bearer_is_let_through() {
        let token = SecretString::from("secret");
        let let_through = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            shows(&headers, &token)
        };
        assert!(let_through("Bearer secret"));
        assert!(let_through("bearer secret"));
        for wrong in
            ["Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret"]
        {
            assert!(!let_through(wrong), "{wrong}");
        }
        assert!(!shows(&HeaderMap::new(), &token));
    }
}
