//! The URL of a PostgreSQL database: what may stand in it, and where it leads. Its parts are never shown but for
//! host and database: what stands elsewhere may be a password.

use std::net::IpAddr;

use url::Url;

/// What the driver reads of a URL; it would only log what it does not, with the value.
const PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

const MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Where a URL leads.
pub(super) struct Database {
    /// None: a socket of this machine, or what the environment says.
    host: Option<String>,
    name: String,
    verified: bool,
}

impl Database {
    /// # Errors
    /// What was given, and what was expected.
    pub(super) fn of(url: &Url) -> Result<Self, (&'static str, String)> {
        let mut database = Self {
            host: url.host_str().filter(|host| !host.is_empty()).map(str::to_owned),
            name: url.path().trim_start_matches('/').to_owned(),
            verified: false,
        };
        for (name, value) in url.query_pairs() {
            let known = PARAMETERS.contains(&&*name) || (name.starts_with("options[") && name.ends_with(']'));
            if !known {
                return Err(("a parameter that is not known", PARAMETERS.join(", ")));
            }
            match &*name {
                "sslmode" if !MODES.contains(&&*value) => return Err(("another sslmode", MODES.join(", "))),
                "sslmode" => database.verified = value == "verify-full",
                "port" if value.parse::<u16>().is_err() => return Err(("another port", "a port's number".into())),
                "statement-cache-capacity" if value.parse::<usize>().is_err() => {
                    return Err(("another statement-cache-capacity", "a number of statements".into()));
                }
                "hostaddr" if value.parse::<IpAddr>().is_err() => {
                    return Err(("another hostaddr", "an IP address".into()));
                }
                "host" | "hostaddr" => database.host = Some(value.into_owned()),
                "dbname" => database.name = value.into_owned(),
                _ => {}
            }
        }
        // A directory with a socket, also percent-encoded as the URL's own host.
        database.host =
            database.host.filter(|host| !host.starts_with('/') && !host.to_ascii_lowercase().starts_with("%2f"));
        Ok(database)
    }

    /// Whether somebody between here and the server could read the connection, or be the server.
    pub(super) fn is_exposed(&self) -> bool {
        !self.verified && self.host.as_deref().is_some_and(|host| !is_this_machine(host))
    }

    pub(super) fn text(&self) -> String {
        format!("PostgreSQL {}/{}", self.host.as_deref().unwrap_or("local socket"), self.name)
    }
}

fn is_this_machine(host: &str) -> bool {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    super::address::is_localhost(host) || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Database, (&'static str, String)> {
        Database::of(&Url::parse(text).unwrap())
    }

    #[test]
    fn what_leads_elsewhere_is_to_be_verified() {
        for (exposed, text) in [
            (true, "postgres://m@db.example.org/m"),
            (true, "postgres://m@db.example.org/m?sslmode=require"),
            (false, "postgres://m@db.example.org/m?sslmode=verify-full"),
            (false, "postgres://m@localhost/m"),
            (false, "postgres://m@[::1]:5432/m"),
            (false, "postgres://m@127.0.0.1/m"),
            (false, "postgres:///m"),
            (false, "postgres://m@%2Fvar%2Frun%2Fpostgresql/m"),
            (false, "postgres://m@db.example.org/m?host=/var/run/postgresql"),
            // What counts is where it leads at last.
            (true, "postgres://m@localhost/m?host=db.example.org"),
            (true, "postgres://m@localhost/m?hostaddr=192.0.2.7"),
        ] {
            assert_eq!(of(text).ok().unwrap().is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_and_not_shown() {
        for (given, text) in [
            ("a parameter that is not known", "postgres://db/m?hunter2"),
            ("a parameter that is not known", "postgres://db/m?passwrd=hunter2"),
            ("another sslmode", "postgres://db/m?sslmode=hunter2"),
            ("another port", "postgres://db/m?port=hunter2"),
            ("another hostaddr", "postgres://db/m?hostaddr=hunter2"),
            ("another statement-cache-capacity", "postgres://db/m?statement-cache-capacity=hunter2"),
        ] {
            let (what, expected) = of(text).err().unwrap();
            assert!(what == given && !expected.contains("hunter2"), "{text}: {what}");
        }
        assert!(of("postgres://db/m?options[default_transaction_isolation]=serializable&application_name=x").is_ok());
    }

    #[test]
    fn host_and_database_are_shown() {
        let text = |url| of(url).ok().unwrap().text();
        assert_eq!(text("postgres://m:p@db.example.org/m?password=q"), "PostgreSQL db.example.org/m");
        assert_eq!(text("postgres://m@x/y?host=/run/pg&dbname=m"), "PostgreSQL local socket/m");
    }
}
