//! The pages that a person sees. They work without JavaScript, and their forms have stable names and ids.

use std::fmt::Write as _;

use crate::ehr::{
    auth::{
        AuthServer, PASSWORD,
        client::{Client, Persona},
        places::{Base, Host},
        scope::Scope,
        state::{Request, User},
    },
    contract::Vendor,
    fhir::PatientSummary,
};

/// Lists of patients are no longer than this.
const LISTED: usize = 25;

/// What the home page offers.
pub struct Home<'a> {
    pub user: &'a User,
    pub apps: Vec<Client>,
    pub patient: Option<&'a PatientSummary>,
    /// Ids, the latest first.
    pub encounters: Vec<String>,
}

pub fn sign_in(server: &AuthServer, transaction: &str, client: &Client, fault: Option<&str>) -> String {
    let intro = format!("<p><strong>{}</strong> asks for access. Sign in to go on.</p>", text(client.title()));
    let hidden = format!(r#"<input type="hidden" name="transaction" value="{}">"#, text(transaction));
    let offered = |user: &User| match server.rules.vendor {
        Vendor::Oracle => client.persona.is_none_or(|persona| persona == user.persona),
        _ => true,
    };
    layout(server, "Sign in", &format!("{intro}{}", accounts(server, "/sign-in", &hidden, fault, offered)))
}

pub fn home_sign_in(server: &AuthServer, fault: Option<&str>) -> String {
    let hidden = r#"<input type="hidden" name="home" value="1">"#;
    layout(server, "Sign in", &accounts(server, "/sign-in", hidden, fault, |user| user.persona == Persona::Provider))
}

/// A form with a name and a password, filled in for the first account, and a button for each demo account.
fn accounts(
    server: &AuthServer,
    action: &str,
    hidden: &str,
    fault: Option<&str>,
    offered: impl Fn(&User) -> bool,
) -> String {
    let users: Vec<&User> = server.users().into_iter().filter(|user| offered(user)).collect();
    let first = users.first().map(|user| user.username.as_str()).unwrap_or_default();
    let fault = fault.map(|fault| format!(r#"<p class="fault" role="alert">{}</p>"#, text(fault))).unwrap_or_default();
    let mut html = format!(
        r#"{fault}<form method="post" action="{action}" id="sign-in-form">{hidden}
<label for="username">User name</label><input id="username" name="username" value="{}" autocomplete="username">
<label for="password">Password</label><input id="password" name="password" type="password" value="{PASSWORD}" autocomplete="current-password">
<button id="sign-in" type="submit">Sign in</button></form><h2>Demo accounts</h2>"#,
        text(first)
    );
    for (persona, title) in [(Persona::Provider, "Clinicians"), (Persona::Patient, "Patients")] {
        let of_kind: Vec<&&User> = users.iter().filter(|user| user.persona == persona).take(LISTED).collect();
        if of_kind.is_empty() {
            continue;
        }
        let _ = write!(html, "<h3>{title}</h3><div class=\"accounts\">");
        for user in of_kind {
            let name = text(&user.username);
            let _ = write!(
                html,
                r#"<form method="post" action="{action}">{hidden}<input type="hidden" name="username" value="{name}"><input type="hidden" name="password" value="{PASSWORD}"><button class="account" id="account-{name}" type="submit">{}</button></form>"#,
                text(&user.name)
            );
        }
        html.push_str("</div>");
    }
    html
}

pub fn select_patient(server: &AuthServer, transaction: &str, client: &Client, search: Option<&str>) -> String {
    let wanted = search.unwrap_or_default().to_lowercase();
    let found = server.patients().iter().filter(|patient| patient.name.to_lowercase().contains(&wanted)).take(LISTED);
    let transaction = text(transaction);
    let mut html = format!(
        r#"<p>Whose record shall <strong>{}</strong> open?</p><form method="post" action="/select-patient" id="search-form"><input type="hidden" name="transaction" value="{transaction}"><label for="search">Name</label><input id="search" name="search" value="{}"><button id="find" type="submit">Search</button></form><form method="post" action="/select-patient" id="patient-form"><input type="hidden" name="transaction" value="{transaction}"><div class="accounts">"#,
        text(client.title()),
        text(search.unwrap_or_default())
    );
    for patient in found {
        let id = text(&patient.id);
        let _ = write!(
            html,
            r#"<button class="account" id="patient-{id}" name="patient" value="{id}" type="submit">{}<small>{} · {}</small></button>"#,
            text(&patient.name),
            text(&patient.birth_date),
            text(&patient.gender)
        );
    }
    html.push_str("</div></form>");
    layout(server, "Select a patient", &html)
}

pub fn consent(server: &AuthServer, transaction: &str, client: &Client, request: &Request) -> String {
    let user = request.user.as_ref().map(|user| user.name.as_str()).unwrap_or_default();
    let patient = request.patient.as_ref().and_then(|id| server.patients().iter().find(|patient| patient.id == *id));
    let about = patient
        .map(|patient| format!(" with the record of <strong>{}</strong>", text(&patient.name)))
        .unwrap_or_default();
    let mut html = format!(
        r#"<p>Signed in as <strong>{}</strong>.</p><p><strong>{}</strong> would like this{about}:</p><form method="post" action="/consent" id="consent-form"><input type="hidden" name="transaction" value="{}"><input type="hidden" name="selection" value="1"><ul class="scopes">"#,
        text(user),
        text(client.title()),
        text(transaction)
    );
    for scope in &request.scopes {
        let word = text(&scope.text(None));
        let line = match scope {
            Scope::Resource(_) => format!(
                r#"<label class="scope"><input type="checkbox" name="scope" value="{word}" checked> {word}</label>"#
            ),
            Scope::Plain(plain) => format!("{} <small>{word}</small>", plain_words(plain)),
        };
        let _ = write!(html, "<li>{line}</li>");
    }
    html.push_str(
        r#"</ul><button id="approve" name="decision" value="approve" type="submit">Approve</button> <button id="deny" class="quiet" name="decision" value="deny" type="submit">Deny</button></form>"#,
    );
    layout(server, "Allow access", &html)
}

fn plain_words(scope: &str) -> &'static str {
    match scope {
        "openid" | "fhirUser" | "profile" => "know who you are",
        "offline_access" => "keep access when you are away",
        "online_access" => "keep access while you are signed in",
        _ => "know which record is open",
    }
}

/// The EHR's own start page: choose patient and encounter, and open an app.
pub fn home(server: &AuthServer, home: &Home<'_>) -> String {
    let chosen = home.patient.map(|patient| patient.id.as_str());
    let mut html = format!(
        r#"<p>Signed in as <strong>{}</strong>. <a id="sign-out" href="/sign-out">Sign out</a></p><form method="get" action="/" id="patient-form"><label for="patient">Patient</label><select id="patient" name="patient">"#,
        text(&home.user.name)
    );
    for patient in server.patients() {
        let selected = if chosen == Some(patient.id.as_str()) { " selected" } else { "" };
        let _ = write!(
            html,
            r#"<option value="{}"{selected}>{} · {}</option>"#,
            text(&patient.id),
            text(&patient.name),
            text(&patient.birth_date)
        );
    }
    html.push_str(r#"</select><button id="choose" type="submit">Open record</button></form>"#);
    let Some(patient) = home.patient else {
        return layout(server, "Start", &html);
    };
    let _ = write!(html, r#"<h2 id="open-record">{}</h2>"#, text(&patient.name));
    if home.apps.is_empty() {
        html.push_str("<p>No app is registered with a launch URL.</p>");
    }
    for app in &home.apps {
        let _ = write!(
            html,
            r#"<form method="post" action="/launch" id="launch-form-{id}"><fieldset><legend>{}</legend><input type="hidden" name="client_id" value="{id}"><input type="hidden" name="patient" value="{}">{}<button id="launch-{id}" type="submit">Open</button> <button id="launch-tab-{id}" class="quiet" type="submit" formtarget="_blank">Open in a new tab</button> <button id="launch-frame-{id}" class="quiet" name="frame" value="1" type="submit">Open in this page</button></fieldset></form>"#,
            text(app.title()),
            text(&patient.id),
            encounters(&app.client_id, &home.encounters),
            id = text(&app.client_id),
        );
    }
    layout(server, "Start", &html)
}

fn encounters(client_id: &str, encounters: &[String]) -> String {
    let id = text(client_id);
    let mut html = format!(
        r#"<label for="encounter-{id}">Encounter</label><select id="encounter-{id}" name="encounter"><option value="">none</option>"#
    );
    for (at, encounter) in encounters.iter().take(LISTED).enumerate() {
        let (selected, latest) = if at == 0 { (" selected", "latest: ") } else { ("", "") };
        let id = text(encounter);
        let _ = write!(html, r#"<option value="{id}"{selected}>{latest}{id}</option>"#);
    }
    html.push_str("</select>");
    html
}

/// The EHR with the app inside it.
pub fn framed(server: &AuthServer, title: &str, url: &str) -> String {
    let inside = format!(
        r#"<p><a id="close" href="/">Close</a></p><iframe id="app" name="app" title="{}" src="{}"></iframe>"#,
        text(title),
        text(url)
    );
    layout(server, title, &inside)
}

pub fn manage(server: &AuthServer, path: &str, grants: &[(u64, String)]) -> String {
    let mut html = String::new();
    if grants.is_empty() {
        html.push_str("<p>You have allowed nothing to any app.</p>");
    }
    for (id, client) in grants {
        let _ = write!(
            html,
            r#"<form method="post" action="{}"><p>{} <button id="end-{id}" class="quiet" name="end" value="{id}" type="submit">End access</button></p></form>"#,
            text(path),
            text(client)
        );
    }
    layout(server, "Apps that you allowed", &html)
}

pub fn message(server: &AuthServer, title: &str, words: &str) -> String {
    layout(server, title, &format!(r#"<p id="message">{}</p>"#, text(words)))
}

fn layout(server: &AuthServer, title: &str, body: &str) -> String {
    let (name, colour) = brand(server.rules.vendor);
    let base = server.places.fhir_base(Base { host: Host::Main, legacy: false });
    format!(
        r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{title} · {name}</title><link rel="icon" href="data:,"><style>
:root{{--brand:{colour}}}*{{box-sizing:border-box}}body{{margin:0;font:16px/1.5 system-ui,sans-serif;background:#f3f4f6;color:#1c2430}}
header{{background:var(--brand);color:#fff;padding:.8rem 1.5rem;font-weight:600}}header small{{font-weight:400;opacity:.85;margin-left:.6rem}}
main{{max-width:44rem;margin:1.5rem auto;padding:1.5rem;background:#fff;border-radius:.6rem;box-shadow:0 1px 4px #0002}}
main:has(iframe){{max-width:none;margin:1rem}}iframe{{width:100%;height:75vh;border:1px solid #ccd}}
h1{{font-size:1.3rem;margin:0 0 1rem}}h2{{font-size:1.05rem;margin:1.6rem 0 .4rem}}h3{{font-size:.9rem;margin:1rem 0 .3rem;color:#556}}
label{{display:block;margin:.7rem 0 .2rem;font-size:.9rem}}input:not([type=checkbox]),select{{width:100%;padding:.5rem;border:1px solid #b8bfca;border-radius:.3rem;font:inherit}}
button{{margin:.8rem 0 0;padding:.5rem 1.1rem;border:1px solid var(--brand);border-radius:.3rem;background:var(--brand);color:#fff;font:inherit;cursor:pointer}}
button.quiet,button.account{{background:#fff;color:var(--brand)}}.accounts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(12rem,1fr));gap:.4rem}}
button.account{{width:100%;margin:0;text-align:left}}button small{{display:block;color:#667}}small{{color:#667}}header small{{color:#fff}}
.fault{{color:#a1121f}}.scopes{{padding:0;list-style:none}}.scopes li{{padding:.3rem 0;border-top:1px solid #e4e7ec}}label.scope{{display:block;margin:0;font-size:1rem}}fieldset{{border:1px solid #d5dae2;border-radius:.4rem;margin:1rem 0}}
a{{color:var(--brand)}}select{{background:#fff}}@media(max-width:45rem){{main{{margin:1rem}}header{{padding:.8rem 1rem}}header small{{display:block;margin:0}}}}
footer{{max-width:44rem;margin:0 auto 2rem;padding:0 1.5rem;font-size:.8rem;color:#667;overflow-wrap:anywhere}}</style></head>
<body><header>{name}<small>a simulation for tests; nobody here is real</small></header><main><h1>{title}</h1>{body}</main><footer>FHIR base: {base}</footer></body></html>"#,
        title = text(title),
    )
}

const fn brand(vendor: Vendor) -> (&'static str, &'static str) {
    match vendor {
        Vendor::Epic => ("Simulated Epic", "#9c1f3b"),
        Vendor::Oracle => ("Simulated Oracle Health", "#a5442f"),
        Vendor::Athena => ("Simulated athenaOne", "#53357f"),
        Vendor::AthenaPractice => ("Simulated athenaPractice", "#3d5a80"),
        Vendor::Generic => ("Simulated EHR", "#1f6f5c"),
    }
}

/// Text for an element or a quoted attribute.
fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
