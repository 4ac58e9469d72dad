//! smart-configuration and openid-configuration.

use serde_json::{Map, Value};
use url::Url;

use super::{DiscoveryFault, Oddity, endpoint, folder, same_host};
use crate::smart::json;

/// What is used of a smart-configuration. Lists gate nothing that a profile decides: real servers
/// leave `refresh_token` and PKCE out of them and take both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmartConfiguration {
    /// As published: an issuer is compared byte for byte.
    pub issuer: Option<String>,
    pub jwks_uri: Option<Url>,
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    /// As published (if absolute): the `aud` of a client assertion must equal it.
    pub token_endpoint_text: String,
    pub introspection_endpoint: Option<Url>,
    pub revocation_endpoint: Option<Url>,
    pub registration_endpoint: Option<Url>,
    pub management_endpoint: Option<Url>,
    pub end_session_endpoint: Option<Url>,
    pub user_access_brand_bundle: Option<Url>,
    pub capabilities: Vec<String>,
    pub scopes_supported: Vec<String>,
    pub code_challenge_methods: Option<Vec<String>>,
    pub token_endpoint_auth_methods: Option<Vec<String>>,
    pub token_endpoint_auth_signing_algs: Option<Vec<String>>,
    pub grant_types: Option<Vec<String>>,
    pub response_types: Option<Vec<String>>,
    /// The server sends `iss` with its authorization response (RFC 9207).
    pub iss_parameter: bool,
}

/// What is used of an openid-configuration: where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIdConfiguration {
    /// As published; the caller compares it with the issuer that it asked (Discovery 1.0 §4.3).
    pub issuer: String,
    pub jwks_uri: Url,
    pub end_session_endpoint: Option<Url>,
}

/// Reads a smart-configuration that was fetched for `fhir_base`.
///
/// # Errors
/// A fault means that nothing of the document is used; discovery goes on with the next source.
pub fn parse_smart_configuration(
    body: &[u8],
    fhir_base: &Url,
) -> Result<(SmartConfiguration, Vec<Oddity>), DiscoveryFault> {
    let mut members = Members::read(body, fhir_base)?;
    let authorization_endpoint = members.needed("authorization_endpoint")?.0;
    let (token_endpoint, token_endpoint_text) = members.needed("token_endpoint")?;
    if authorization_endpoint.query().is_some() {
        members.odd(Oddity::AuthorizeHasQuery);
    }

    let capabilities = members.list("capabilities");
    if capabilities.is_none() {
        members.odd(Oddity::NoCapabilities);
    }
    let capabilities = capabilities.unwrap_or_default();
    if capabilities.iter().any(|capability| capability.starts_with("context-passthrough-")) {
        members.odd(Oddity::OldCapabilityNames);
    }
    let code_challenge_methods = members.list("code_challenge_methods_supported");
    match &code_challenge_methods {
        None => members.odd(Oddity::NoPkceList),
        Some(methods) if !methods.iter().any(|method| method == "S256") => members.odd(Oddity::PkceWithoutS256),
        Some(_) => {}
    }

    let issuer = members.issuer(&authorization_endpoint);
    let mut management_endpoint = members.optional("management_endpoint");
    if management_endpoint.as_ref().is_some_and(|url| folder(url) == folder(fhir_base)) {
        members.odd(Oddity::ManagementIsBase);
        management_endpoint = None;
    }

    let configuration = SmartConfiguration {
        issuer,
        jwks_uri: members.optional("jwks_uri"),
        authorization_endpoint,
        token_endpoint,
        token_endpoint_text,
        introspection_endpoint: members.optional("introspection_endpoint"),
        revocation_endpoint: members.optional("revocation_endpoint"),
        registration_endpoint: members.optional("registration_endpoint"),
        management_endpoint,
        end_session_endpoint: members.optional("end_session_endpoint"),
        user_access_brand_bundle: members.optional("user_access_brand_bundle"),
        capabilities,
        scopes_supported: members.list("scopes_supported").unwrap_or_default(),
        code_challenge_methods,
        token_endpoint_auth_methods: members
            .list_or_misnamed("token_endpoint_auth_methods_supported", "token_endpoint_auth_methods"),
        token_endpoint_auth_signing_algs: members.list("token_endpoint_auth_signing_alg_values_supported"),
        grant_types: members.list("grant_types_supported"),
        response_types: members.list("response_types_supported"),
        iss_parameter: members.object.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
    };
    Ok((configuration, members.oddities))
}

/// Reads an openid-configuration. `issuer` is the one that was asked; plain http is taken only below it.
///
/// # Errors
/// As [`parse_smart_configuration`]; an issuer and keys are needed.
pub fn parse_openid_configuration(
    body: &[u8],
    issuer: &Url,
) -> Result<(OpenIdConfiguration, Vec<Oddity>), DiscoveryFault> {
    let mut members = Members::read(body, issuer)?;
    let Some(published) = members.text("issuer") else {
        return Err(DiscoveryFault::MissingEndpoint("issuer"));
    };
    endpoint("issuer", &published, issuer)?;
    let configuration = OpenIdConfiguration {
        issuer: published,
        jwks_uri: members.needed("jwks_uri")?.0,
        end_session_endpoint: members.optional("end_session_endpoint"),
    };
    Ok((configuration, members.oddities))
}

/// The members of a document, read one by one, and what was odd about them.
struct Members<'a> {
    object: Map<String, Value>,
    base: &'a Url,
    oddities: Vec<Oddity>,
}

impl<'a> Members<'a> {
    fn read(body: &[u8], base: &'a Url) -> Result<Self, DiscoveryFault> {
        let parsed = json::parse(body)?;
        let Value::Object(object) = parsed.value else {
            return Err(DiscoveryFault::NotObject { found: json::kind(&parsed.value) });
        };
        let oddities = if parsed.byte_order_mark { vec![Oddity::ByteOrderMark] } else { Vec::new() };
        Ok(Self { object, base, oddities })
    }

    fn odd(&mut self, oddity: Oddity) {
        self.oddities.push(oddity);
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        match self.object.get(name)? {
            Value::String(text) if text.trim().is_empty() => self.odd(Oddity::EmptyMember(name)),
            Value::String(text) => return Some(text.clone()),
            Value::Null => self.odd(Oddity::NullMember(name)),
            _ => self.odd(Oddity::WrongType(name)),
        }
        None
    }

    /// The endpoint, and its text as published.
    fn needed(&mut self, name: &'static str) -> Result<(Url, String), DiscoveryFault> {
        let text = self.text(name).ok_or(DiscoveryFault::MissingEndpoint(name))?;
        let (url, relative) = endpoint(name, &text, self.base)?;
        if relative {
            self.odd(Oddity::RelativeEndpoint(name));
            return Ok((url.clone(), url.into()));
        }
        Ok((url, text))
    }

    fn optional(&mut self, name: &'static str) -> Option<Url> {
        let text = self.text(name)?;
        match endpoint(name, &text, self.base) {
            Ok((url, relative)) => {
                if relative {
                    self.odd(Oddity::RelativeEndpoint(name));
                }
                Some(url)
            }
            Err(fault) => {
                self.odd(Oddity::EndpointDropped { name, fault });
                None
            }
        }
    }

    fn issuer(&mut self, authorize: &Url) -> Option<String> {
        const DOCUMENT: &str = "/.well-known/openid-configuration";
        let mut text = self.text("issuer")?;
        if let Some(issuer) = text.strip_suffix(DOCUMENT) {
            text = issuer.to_owned();
            self.odd(Oddity::IssuerIsDocument);
        }
        match endpoint("issuer", &text, self.base) {
            Ok((url, _)) if !same_host(&url, self.base) && !same_host(&url, authorize) => {
                self.odd(Oddity::IssuerElsewhere);
            }
            Ok(_) => {}
            Err(fault) => {
                self.odd(Oddity::EndpointDropped { name: "issuer", fault });
                return None;
            }
        }
        Some(text)
    }

    fn list(&mut self, name: &'static str) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let mut oddity = None;
        match self.object.get(name)? {
            Value::Array(items) => {
                for item in items {
                    match item {
                        Value::String(text) => found.push(text.clone()),
                        Value::Array(inner) => {
                            oddity = Some(Oddity::NestedList(name));
                            found.extend(inner.iter().filter_map(Value::as_str).map(str::to_owned));
                        }
                        _ => oddity = Some(Oddity::ItemsIgnored(name)),
                    }
                }
            }
            Value::String(text) => {
                oddity = Some(Oddity::ListAsString(name));
                let parts = text.split(|c: char| c == ',' || c.is_whitespace());
                found.extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
            }
            Value::Null => {
                self.odd(Oddity::NullMember(name));
                return None;
            }
            _ => {
                self.odd(Oddity::WrongType(name));
                return None;
            }
        }
        self.oddities.extend(oddity);
        Some(found)
    }

    fn list_or_misnamed(&mut self, name: &'static str, misnamed: &'static str) -> Option<Vec<String>> {
        if self.object.contains_key(misnamed) {
            self.odd(Oddity::Misnamed { given: misnamed, expected: name });
        }
        self.list(name).or_else(|| self.list(misnamed))
    }
}
