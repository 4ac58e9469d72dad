//! FHIR dates as ranges of milliseconds since 1970, and back.

/// `[from, to)` in milliseconds since 1970; open ends are the extremes of `i64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub from: i64,
    pub to: i64,
}

/// How a search compares (`R4 search.html#prefix`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    StartsAfter,
    EndsBefore,
    About,
}

impl Prefix {
    /// Splits `ge2020-01-01`.
    pub fn split(text: &str) -> (Self, &str) {
        const PREFIXES: [(&str, Prefix); 9] = [
            ("eq", Prefix::Equal),
            ("ne", Prefix::NotEqual),
            ("gt", Prefix::Greater),
            ("lt", Prefix::Less),
            ("ge", Prefix::GreaterOrEqual),
            ("le", Prefix::LessOrEqual),
            ("sa", Prefix::StartsAfter),
            ("eb", Prefix::EndsBefore),
            ("ap", Prefix::About),
        ];
        PREFIXES
            .iter()
            .find_map(|(name, prefix)| text.strip_prefix(name).map(|rest| (*prefix, rest)))
            .unwrap_or((Self::Equal, text))
    }

    /// Whether `target`, a resource's value, satisfies this prefix with `value`, the search's.
    pub const fn holds(self, value: Range, target: Range) -> bool {
        let contained = value.from <= target.from && target.to <= value.to;
        match self {
            Self::Equal => contained,
            Self::NotEqual => !contained,
            Self::Greater => target.to > value.to,
            Self::Less => target.from < value.from,
            Self::GreaterOrEqual => contained || target.to > value.to,
            Self::LessOrEqual => contained || target.from < value.from,
            Self::StartsAfter => target.from >= value.to,
            Self::EndsBefore => target.to <= value.from,
            Self::About => target.from < value.to && value.from < target.to,
        }
    }
}

const DAY: i64 = 86_400_000;

/// Parses `2020`, `2020-05`, `2020-05-06`, `2020-05-06T07:08[:09[.123]][Z|+01:00]`; no zone means UTC.
pub fn parse(text: &str) -> Option<Range> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = i64::from(digits(parts.next()?, 4)?);
    let month = parts.next().map(|part| digits(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    let day = parts.next().map(|part| digits(part, 2)).map_or(Some(None), |part| part.map(Some))?;
    if parts.next().is_some() {
        return None;
    }
    match (month, day, time) {
        (None, None, None) => Some(Range { from: midnight(year, 1, 1)?, to: midnight(year + 1, 1, 1)? }),
        (Some(month), None, None) => {
            let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            Some(Range { from: midnight(year, month, 1)?, to: midnight(next_year, next_month, 1)? })
        }
        (Some(month), Some(day), None) => {
            let from = midnight(year, month, day)?;
            Some(Range { from, to: from + DAY })
        }
        (Some(month), Some(day), Some(time)) => {
            let (offset, length) = clock(time)?;
            let from = midnight(year, month, day)? + offset;
            Some(Range { from, to: from + length })
        }
        _ => None,
    }
}

/// Milliseconds after UTC midnight, and how long the moment named lasts.
fn clock(text: &str) -> Option<(i64, i64)> {
    let (local, zone) = match text.find(['Z', '+', '-']) {
        Some(at) => (text.get(..at)?, text.get(at..)?),
        None => (text, "Z"),
    };
    let zone = match zone.strip_prefix('Z') {
        Some("") => 0,
        Some(_) => return None,
        None => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            sign * (i64::from(digits(hours, 2)?) * 60 + i64::from(digits(minutes, 2)?)) * 60_000
        }
    };
    let mut parts = local.splitn(3, ':');
    let hours = i64::from(digits(parts.next()?, 2)?);
    let minutes = i64::from(digits(parts.next()?, 2)?);
    let (seconds, fraction, length) = match parts.next() {
        None => (0, 0, 60_000),
        Some(seconds) => match seconds.split_once('.') {
            None => (i64::from(digits(seconds, 2)?), 0, 1000),
            Some((seconds, fraction)) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => {
                let millis = format!("{fraction:0<3}").get(..3)?.parse::<i64>().ok()?;
                (i64::from(digits(seconds, 2)?), millis, 1)
            }
            Some(_) => return None,
        },
    };
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    Some((((hours * 60 + minutes) * 60 + seconds) * 1000 + fraction - zone, length))
}

fn digits(text: &str, length: usize) -> Option<u32> {
    (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn midnight(year: i64, month: u32, day: u32) -> Option<i64> {
    if !(1..=12).contains(&month) || day < 1 || day > month_length(year, month) {
        return None;
    }
    let (month, day) = (i64::from(month), i64::from(day));
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468) * DAY)
}

const fn month_length(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A FHIR `instant` in UTC with milliseconds.
pub fn instant(millis: i64) -> String {
    let days = millis.div_euclid(DAY) + 719_468;
    let rest = millis.rem_euclid(DAY);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hours, minutes) = (rest / 3_600_000, rest / 60_000 % 60);
    let (seconds, fraction) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{fraction:03}Z")
}

/// An HTTP date; moments before 1970 become 1970.
pub fn http(millis: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + since)
}

/// Milliseconds since 1970 of an HTTP date, whole seconds.
pub fn parse_http(text: &str) -> Option<i64> {
    let since = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_as_long_as_it_is_precise() {
        for (text, from, length) in [
            ("1970", 0, 365 * DAY),
            ("2000-02", 951_782_400_000 - 28 * DAY, 29 * DAY),
            ("2000-02-29", 951_782_400_000, DAY),
            ("1970-01-01T00:00Z", 0, 60_000),
            ("1970-01-01T01:00:00+01:00", 0, 1000),
            ("1970-01-01T00:00:00.250Z", 250, 1),
        ] {
            assert_eq!(parse(text), Some(Range { from, to: from + length }), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "20",
            "2001-02-29",
            "2001-13",
            "2001-1-1",
            "2001-01-01T25:00",
            "2001-01-01T",
            "x",
            "2001-01-01T00:00:00é",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_instant_reads_back() {
        for millis in [0, 951_782_399_999, 1_780_272_000_000, -1] {
            assert_eq!(parse(&instant(millis)), Some(Range { from: millis, to: millis + 1 }), "{}", instant(millis));
        }
    }

    #[test]
    fn prefixes_compare_ranges() {
        let (day, later) = (parse("2020-05-06").expect("date"), parse("2020-05-07T10:00:00Z").expect("date"));
        assert!(Prefix::Less.holds(later, day) && Prefix::Greater.holds(day, later));
        assert!(Prefix::StartsAfter.holds(day, later) && Prefix::EndsBefore.holds(later, day));
        assert!(Prefix::GreaterOrEqual.holds(day, day) && Prefix::LessOrEqual.holds(day, day));
        assert!(!Prefix::Greater.holds(day, day) && !Prefix::NotEqual.holds(day, day));
    }
}
