//! `[server]` and `[store]`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use figment::value::Value;

use super::{
    address,
    database::Database,
    fault::shown,
    model::{Limits, SealKey, Server, ServerTls, StoreConfig, StoreUrl, Telemetry, Timeouts},
    reader::{Context, Given, Table},
    secrets::{self, Pem, Source},
};
use crate::secret::Secret;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(context: &Context<'_>) -> Server {
    let table = context.top("server");
    let public = table.required("public_url", "the https origin under which apps and EHRs reach Mantel");
    let checked = public.as_ref().and_then(|public| match address::public(public) {
        Ok(url) => Some(url),
        Err(expected) => {
            context.refuse(public, expected);
            None
        }
    });
    let server = Server {
        public_url: public.map(|public| public.value).unwrap_or_default(),
        listen: socket(&table, "listen").unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8443))),
        admin_listen: socket(&table, "admin_listen").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9464))),
        admin_socket: admin_socket(&table),
        tls: tls(&table),
        behind_proxy: behind_proxy(&table),
        workers: table.number("workers", 1..=1024).and_then(|workers| usize::try_from(workers).ok()),
        limits: limits(&table),
        timeouts: timeouts(&table),
        max_stale: table
            .duration("max_stale", Duration::from_secs(1)..=Duration::from_secs(3600))
            .unwrap_or(Duration::from_secs(60)),
        sandbox: table.flag("sandbox").unwrap_or_default(),
    };
    // There is no bearer and no client certificate for it yet, and it tells what runs here.
    if !server.admin_listen.ip().is_loopback() {
        let given = shown(&server.admin_listen.to_string());
        context.fault(&table.at("admin_listen"), given, "a loopback address: the admin listener authenticates nobody");
    }
    if let Some(url) = checked {
        let plain = url.scheme() == "http";
        if table.has("tls") && plain {
            context.fault(&table.at("public_url"), shown(&server.public_url), "https, where tls is set");
        }
        if !table.has("tls") && !address::is_loopback(&url) && !table.has("behind_proxy") {
            let expected = "cert and key; or behind_proxy with the addresses of the proxies that end TLS";
            table.missing("tls", expected);
        }
    }
    table.finish();
    server
}

fn socket(table: &Table<'_>, key: &'static str) -> Option<SocketAddr> {
    let expected = "an address and a port, such as 127.0.0.1:8443 or [::]:8443";
    let text = table.text(key, expected)?;
    let address = text.parse().ok();
    if address.is_none() {
        table.context.refuse(&text, expected);
    }
    address
}

fn admin_socket(table: &Table<'_>) -> Option<PathBuf> {
    let context = table.context;
    let expected = "the path of a Unix socket, of at most 91 bytes";
    let given = table.text("admin_socket", expected)?;
    let path = context.tree.places.directory(&given.path).join(&given.value);
    // `sun_path` less the name under which the socket is made before it is moved there.
    if given.value.is_empty() || path.as_os_str().len() > 91 {
        context.refuse(&given, expected);
        return None;
    }
    Some(path)
}

fn tls(table: &Table<'_>) -> Option<ServerTls> {
    let tls = table.table("tls", "a table with cert and key")?;
    for key in ["cert", "key"] {
        if !tls.has(key) {
            tls.missing(key, "{ file = \"path\" }");
        }
    }
    let cert = secrets::pem_file(&tls, "cert", Pem::Certificates);
    let key = secrets::pem_file(&tls, "key", Pem::PrivateKey);
    tls.finish();
    Some(ServerTls { cert: cert?, key: key? })
}

fn behind_proxy(table: &Table<'_>) -> Vec<ipnet::IpNet> {
    let expected = "an address or a network, such as 10.0.0.7 or 10.0.0.0/8";
    let nets = table.texts("behind_proxy", expected);
    if nets.as_ref().is_some_and(Vec::is_empty) {
        table.context.fault(&table.at("behind_proxy"), "an empty list", "at least one address of a trusted proxy");
    }
    let nets = nets.unwrap_or_default().into_iter().filter_map(|text| {
        let net = text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from));
        if net.is_none() {
            table.context.refuse(&text, expected);
        }
        net
    });
    nets.collect()
}

fn limits(table: &Table<'_>) -> Limits {
    let default = Limits::default();
    let Some(limits) = table.table("limits", "a table of limits") else { return default };
    let count = |key, range| limits.number(key, range).and_then(|number| usize::try_from(number).ok());
    let read = Limits {
        body: limits.size("body", 1 << 10..=64 << 20).unwrap_or(default.body),
        bundle: limits.size("bundle", 1 << 10..=256 << 20).unwrap_or(default.bundle),
        inspected: limits.size("inspected", 1 << 10..=64 << 20).unwrap_or(default.inspected),
        // hyper keeps its read buffer at no less than 8 KiB.
        head: limits.size("head", 8 << 10..=1 << 20).unwrap_or(default.head),
        site_concurrency: count("site_concurrency", 1..=100_000).unwrap_or(default.site_concurrency),
        connections: count("connections", 1..=1_000_000).unwrap_or(default.connections),
    };
    limits.finish();
    read
}

fn timeouts(table: &Table<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(timeouts) = table.table("timeouts", "a table of timeouts") else { return default };
    // Below a tenth of a second every network fails; the sandbox plays with such.
    let shortest = Duration::from_millis(if table.context.sandbox { 1 } else { 100 });
    let read = |key, default| timeouts.duration(key, shortest..=Duration::from_secs(3600)).unwrap_or(default);
    let read = Timeouts {
        header: read("header", default.header),
        handshake: read("handshake", default.handshake),
        connect: read("connect", default.connect),
        upstream: read("upstream", default.upstream),
        idle: read("idle", default.idle),
        token: read("token", default.token),
        custody: read("custody", default.custody),
        drain: read("drain", default.drain),
    };
    timeouts.finish();
    read
}

pub(super) fn read_telemetry(context: &Context<'_>) -> Telemetry {
    let table = context.top("telemetry");
    let expected = "a collector's base, such as https://collector.example.org:4318";
    let otlp = table.text("otlp", expected).and_then(|text| {
        let url = url::Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            context.refuse(&text, expected);
        }
        url
    });
    let expected = "tracing's directives, such as info or mantel=debug,warn";
    let log = table.text("log", expected).filter(|text| {
        let reads = tracing_subscriber::EnvFilter::try_new(&text.value).is_ok();
        if !reads {
            context.refuse(text, expected);
        }
        reads
    });
    let telemetry = Telemetry {
        otlp,
        sample_percent: table.number("sample_percent", 0..=100).unwrap_or(1),
        log: log.map_or_else(|| "info".into(), |log| log.value),
    };
    table.finish();
    telemetry
}

pub(super) fn read_store(context: &Context<'_>) -> Option<StoreConfig> {
    let table = context.top("store");
    let url = url(&table);
    let seal = seal(&table);
    let spill = spill(&table, url.as_ref());
    table.finish();
    Some(StoreConfig { url: url?, seal, spill })
}

/// A directory of this process's own; beside an SQLite file unless another is named.
fn spill(table: &Table<'_>, url: Option<&StoreUrl>) -> Option<PathBuf> {
    let expected = "a directory that only this gateway process writes to, on a volume that outlives it";
    let context = table.context;
    let given = table.text("spill", expected);
    if let Some(empty) = given.as_ref().filter(|given| given.value.is_empty()) {
        context.refuse(empty, expected);
        return None;
    }
    let named = given.as_ref().map(|given| context.tree.places.directory(&given.path).join(&given.value));
    match (url?, named) {
        (StoreUrl::Sqlite(None), Some(_)) => {
            context.fault(
                &table.at("spill"),
                "a directory",
                "none with sqlite::memory:, whose grants end with the process",
            );
            None
        }
        (_, Some(named)) => Some(named),
        (StoreUrl::Sqlite(file), None) => file.as_ref().map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".spill");
            name.into()
        }),
        (StoreUrl::Postgres(_), None) if context.sandbox => {
            let text = "not set: an EHR's answer that the database does not take is lost with this process, and its \
                        user logged out";
            context.note(&table.at("spill"), text);
            None
        }
        (StoreUrl::Postgres(_), None) => {
            table.missing("spill", expected);
            None
        }
    }
}

const STORES: &str = "sqlite:///path/to/file, sqlite::memory:, or postgres://…";

fn url(table: &Table<'_>) -> Option<StoreUrl> {
    let context = table.context;
    let Some(given) = table.value("url") else {
        table.missing("url", STORES);
        return None;
    };
    let (text, literal) = match secrets::source(context, &given)? {
        Source::Literal { text, environment } => (Secret::from(text), !environment),
        Source::Bytes(bytes) => (secrets::text_of(context, &given.path, &bytes)?, false),
    };
    let store = store_url(context, &given, text.expose());
    // A URL with a password is a secret.
    let password = url::Url::parse(text.expose()).is_ok_and(|url| {
        url.password().is_some() || url.query_pairs().any(|(name, _)| name.eq_ignore_ascii_case("password"))
    });
    if literal && password && !context.sandbox {
        let expected = "{ env = \"NAME\" } or { file = \"path\" }: no secret stands in a configuration";
        context.fault(&given.path, "a URL with a password", expected);
        return None;
    }
    store
}

fn store_url(context: &Context<'_>, given: &Given<&Value>, text: &str) -> Option<StoreUrl> {
    if let Some(rest) = text.strip_prefix("sqlite:") {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if matches!(path, ":memory:" | "") {
            return Some(StoreUrl::Sqlite(None));
        }
        if path.contains('?') {
            context.fault(&given.path, "a URL with parameters", "a path alone: Mantel sets SQLite's parameters itself");
            return None;
        }
        return Some(StoreUrl::Sqlite(Some(context.tree.places.directory(&given.path).join(PathBuf::from(path)))));
    }
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => {
            let database = match Database::of(&url) {
                Ok(database) => database,
                Err((what, expected)) => {
                    context.fault(&given.path, what, expected);
                    return None;
                }
            };
            if database.is_exposed() {
                let text =
                    "sslmode is not verify-full: the connection to the database can be read and changed on its way";
                context.note(&given.path, text);
            }
            Some(StoreUrl::Postgres(Secret::from(text)))
        }
        _ => {
            // Not shown: what stands there may hold a password in a form that we do not know.
            context.fault(&given.path, "another URL", STORES);
            None
        }
    }
}

fn seal(table: &Table<'_>) -> Vec<SealKey> {
    let context = table.context;
    let expected = "at least one of { id = \"name\", file = \"path\" } (or env)";
    let Some(entries) = table.tables("seal", "{ id = \"name\", file = \"path\" } (or env)") else {
        if !table.has("seal") {
            table.missing("seal", expected);
        }
        return Vec::new();
    };
    if entries.is_empty() {
        context.fault(&table.at("seal"), "an empty list", expected);
    }
    let mut keys: Vec<SealKey> = Vec::new();
    for entry in entries {
        let id = entry.required("id", "a name for the key, which each record carries");
        let bytes = secrets::referred(&entry);
        let fits = |id: &str| id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if let Some(id) = id.as_ref().filter(|id| !fits(id)) {
            context.refuse(id, "up to 64 letters, digits, -, _ and .");
        }
        if let Some(id) = id.as_ref().filter(|id| keys.iter().any(|key| key.id == id.value)) {
            context.refuse(id, "an id of its own for each key");
        }
        let key = bytes.as_ref().map(secrets::seal_key);
        match (id, key) {
            (Some(id), Some(Ok(bytes))) => keys.push(SealKey { id: id.value, bytes }),
            (_, Some(Err(given))) => {
                let expected = "32 bytes, raw or in base64 or hexadecimal (openssl rand -base64 32)";
                context.fault(&entry.path, given, expected);
            }
            _ => {}
        }
        entry.finish();
    }
    keys
}
