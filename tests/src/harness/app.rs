//! An app, as a SMART client library would play it, driven through the pages by a [`Visitor`].

use anyhow::{Context as _, Result, bail, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::Method;
use serde_json::{Map, Value};
use url::Url;

use super::{APP, APP_SECRET, Answer, CALLBACK, SECRET_APP, call, get};
use crate::ehr::{
    auth::client::Persona,
    jwt::{random, s256},
    server::Running,
    visitor::{Page, Visitor},
};

/// An app at one of the gateway's bases.
pub struct App {
    pub client_id: String,
    pub base: String,
    pub authorize: String,
    pub token: String,
    pub scope: String,
    pub verifier: String,
    pub state: String,
    pub nonce: String,
}

/// What an app holds after a launch.
#[derive(Clone, Debug)]
pub struct Tokens(pub Map<String, Value>);

impl Tokens {
    pub fn text(&self, member: &str) -> &str {
        self.0.get(member).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn access(&self) -> &str {
        self.text("access_token")
    }

    pub fn refresh(&self) -> &str {
        self.text("refresh_token")
    }

    /// The claims of the id_token, unverified.
    pub fn claims(&self) -> Result<Value> {
        let payload = self.text("id_token").split('.').nth(1).context("no id_token")?;
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
    }
}

impl App {
    /// A public app; reads the base's smart-configuration.
    pub async fn at(base: &str) -> Result<Self> {
        Self::of(APP, base).await
    }

    /// The app that holds a secret.
    pub async fn with_secret(base: &str) -> Result<Self> {
        Self::of(SECRET_APP, base).await
    }

    async fn of(client_id: &str, base: &str) -> Result<Self> {
        let found = get(&format!("{base}/.well-known/smart-configuration"), &[]).await?;
        ensure!(found.status == 200, "smart-configuration: {} {}", found.status, found.text());
        let found = found.json()?;
        let endpoint = |name: &str| found[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        Ok(Self {
            client_id: client_id.to_owned(),
            base: base.to_owned(),
            authorize: endpoint("authorization_endpoint")?,
            token: endpoint("token_endpoint")?,
            scope: "launch/patient openid fhirUser offline_access patient/Patient.read patient/Observation.read patient/Condition.read".into(),
            verifier: random::<48>(),
            state: random::<16>(),
            nonce: random::<16>(),
        })
    }

    #[must_use]
    pub fn asking(mut self, scope: &str) -> Self {
        scope.clone_into(&mut self.scope);
        self
    }

    /// The authorization request, with some parameters otherwise; an empty one is left out.
    pub fn url(&self, changes: &[(&str, &str)]) -> Result<String> {
        let challenge = s256(&self.verifier);
        let mut pairs = vec![
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", CALLBACK),
            ("scope", &self.scope),
            ("state", &self.state),
            ("aud", &self.base),
            ("nonce", &self.nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        for (name, value) in changes {
            pairs.retain(|(known, _)| known != name);
            if !value.is_empty() {
                pairs.push((name, value));
            }
        }
        Ok(Url::parse_with_params(&self.authorize, pairs)?.into())
    }

    /// From the authorization request through the EHR's pages to the redirect back: its URL.
    pub async fn authorize(&self, visitor: &mut Visitor, ehr: &Running, changes: &[(&str, &str)]) -> Result<Url> {
        let page = visitor.get(&self.url(changes)?).await?;
        through(visitor, ehr, page).await
    }

    /// A whole standalone launch by the user of this name.
    pub async fn launch_as(&self, username: &str) -> Result<Tokens> {
        let mut visitor = visitor();
        let page = visitor.get(&self.url(&[])?).await?;
        let back = through_as(&mut visitor, username, page).await?;
        self.redeem(&self.code(&back)?).await
    }

    /// A whole standalone launch.
    pub async fn launch(&self, ehr: &Running) -> Result<Tokens> {
        let back = self.authorize(&mut visitor(), ehr, &[]).await?;
        self.redeem(&self.code(&back)?).await
    }

    /// A whole EHR launch, for the EHR's first patient.
    pub async fn ehr_launch(&self, ehr: &Running, entry: &str) -> Result<Tokens> {
        let mut visitor = visitor();
        let page = visitor.get(entry).await?;
        let to =
            page.redirect().with_context(|| format!("the launch entry answered {} {}", page.status, page.text()))?;
        ensure!(to.as_str().starts_with(super::LAUNCH_URL), "the launch entry led to {to}");
        let param = |name: &str| to.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned());
        ensure!(param("iss").as_deref() == Some(&self.base), "iss is {:?}", param("iss"));
        let launch = param("launch").context("no launch")?;
        let back = self.authorize(&mut visitor, ehr, &[("launch", &launch)]).await?;
        self.redeem(&self.code(&back)?).await
    }

    /// The code of a redirect, whose state must be ours.
    pub fn code(&self, back: &Url) -> Result<String> {
        let param =
            |name: &str| back.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned());
        ensure!(param("state").as_deref() == Some(&self.state), "the state came back changed: {back}");
        param("code").with_context(|| format!("no code: {back}"))
    }

    pub async fn redeem(&self, code: &str) -> Result<Tokens> {
        tokens(&self.exchange(&[("code", code), ("code_verifier", &self.verifier)]).await?)
    }

    /// A token request with `authorization_code`, some parameters otherwise.
    pub async fn exchange(&self, changes: &[(&str, &str)]) -> Result<Answer> {
        let mut pairs =
            vec![("grant_type", "authorization_code"), ("redirect_uri", CALLBACK), ("code_verifier", &self.verifier)];
        for (name, value) in changes {
            pairs.retain(|(known, _)| known != name);
            if !value.is_empty() {
                pairs.push((name, value));
            }
        }
        self.post(pairs).await
    }

    pub async fn refresh(&self, token: &str) -> Result<Tokens> {
        tokens(&self.try_refresh(&[("refresh_token", token)]).await?)
    }

    pub async fn try_refresh(&self, pairs: &[(&str, &str)]) -> Result<Answer> {
        let mut all = vec![("grant_type", "refresh_token")];
        all.extend_from_slice(pairs);
        self.post(all).await
    }

    async fn post(&self, pairs: Vec<(&str, &str)>) -> Result<Answer> {
        self.post_to(&self.token, &pairs).await
    }

    /// A form, as this app authenticates.
    pub async fn post_to(&self, url: &str, pairs: &[(&str, &str)]) -> Result<Answer> {
        let (headers, body) = self.token_request(pairs);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        call(Method::POST, url, &headers, &body).await
    }

    /// Headers and body of a token request with these parameters, as this app authenticates.
    pub fn token_request(&self, pairs: &[(&str, &str)]) -> (Vec<(&'static str, String)>, String) {
        let mut headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        if self.client_id == SECRET_APP {
            let basic = STANDARD.encode(format!("{}:{APP_SECRET}", self.client_id));
            headers.push(("authorization", format!("Basic {basic}")));
        } else {
            form.append_pair("client_id", &self.client_id);
        }
        (headers, form.finish())
    }
}

pub fn tokens(answer: &Answer) -> Result<Tokens> {
    match answer.json()? {
        Value::Object(body) if answer.status == 200 => Ok(Tokens(body)),
        body => bail!("the token endpoint answered {} {body}", answer.status),
    }
}

/// A browser that stops where the app would take over.
pub fn visitor() -> Visitor {
    Visitor::new().stop_at(CALLBACK).stop_at(super::LAUNCH_URL)
}

/// Goes through an EHR's pages as one of its patients.
pub async fn through(visitor: &mut Visitor, ehr: &Running, page: Page) -> Result<Url> {
    through_as(visitor, &user(ehr)?, page).await
}

/// Goes through an EHR's pages: signs in, chooses the first patient, approves.
async fn through_as(visitor: &mut Visitor, username: &str, mut page: Page) -> Result<Url> {
    for _ in 0..8 {
        if let Some(to) = page.redirect() {
            return Ok(to);
        }
        page = if page.has_button("sign-in") {
            visitor.sign_in(&page, username).await?
        } else if page.has_button("approve") {
            visitor.press(&page, "approve", &[]).await?
        } else if let Some(button) =
            page.forms().iter().flat_map(|form| &form.buttons).map(|(id, ..)| id).find(|id| id.starts_with("patient-"))
        {
            visitor.press(&page, button, &[]).await?
        } else {
            bail!("a page that no user of an EHR knows: {} {} {}", page.url, page.status, page.text());
        };
    }
    bail!("the EHR's pages have no end")
}

/// A patient who may sign in: the one with the most records.
fn user(ehr: &Running) -> Result<String> {
    let first = ehr.auth.patients().first().context("an EHR without patients")?.id.clone();
    let users = ehr.auth.users();
    let own = users.iter().find(|user| user.persona == Persona::Patient && user.fhir_id == first);
    let user = own.or_else(|| users.iter().find(|user| user.persona == Persona::Patient));
    Ok(user.context("no patient may sign in")?.username.clone())
}
