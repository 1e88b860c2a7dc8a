//! Sizes, CPUs and durations as people write them (Compose specification, "Specifying byte values" and "Specifying
//! durations"). Also used by `ctl` for its flags.

use std::time::Duration;

use flota_api::model::OnPartition;

/// Parses a size such as `512`, `64k`, `256m` or `1.5gb`; units are powers of 1024. Returns bytes.
///
/// # Errors
/// A message that names the text and the form that is expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{text}` is not a size such as 512, 64k, 256m or 1.5g")),
    };
    decimal(number, 1 << shift).ok_or_else(|| format!("`{text}` is not a size such as 512, 64k, 256m or 1.5g"))
}

/// Parses a number of CPUs such as `0.5` or `2`. Returns billionths of a CPU.
///
/// # Errors
/// A message that names the text and the form that is expected.
pub fn cpus(text: &str) -> Result<u64, String> {
    decimal(text.trim(), 1_000_000_000).ok_or_else(|| format!("`{text}` is not a number of CPUs such as 0.5 or 2"))
}

/// Multiplies a decimal number by `unit` and rounds down, without floating point. `None` if `text` is not a number, or the
/// product does not fit.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 12 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let scale = 10u128.pow(u32::try_from(part.len()).ok()?);
    let scaled = digits(whole)?.checked_mul(scale)?.checked_add(digits(part)?)?;
    let value = scaled.checked_mul(u128::from(unit))? / scale;
    u64::try_from(value).ok()
}

/// Parses a duration such as `300ms`, `10s`, `1m30s`, `2h` or `1.5s`.
///
/// # Errors
/// A message that names the text and the form that is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("`{text}` is not a duration such as 300ms, 10s, 1m30s or 2h");
    let mut rest = text.trim();
    let mut total = 0u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = match unit {
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(fail()),
        };
        total = decimal(number, unit).and_then(|it| total.checked_add(it)).ok_or_else(fail)?;
        rest = tail;
    }
    if text.trim().is_empty() { Err(fail()) } else { Ok(Duration::from_nanos(total)) }
}

/// Parses a duration of which there may be none: an empty text, `0` and a duration of zero give none.
///
/// # Errors
/// A message that names the text and the form that is expected.
pub fn duration_or_none(text: &str) -> Result<Option<Duration>, String> {
    match text.trim() {
        "" | "0" => Ok(None),
        text => duration(text).map(|it| Some(it).filter(|it| !it.is_zero())),
    }
}

/// Parses what becomes of a task whose node can reach no manager: `run`, or `stop:TIME`.
///
/// # Errors
/// A message that names the text and the forms that are expected.
pub fn on_partition(text: &str) -> Result<OnPartition, String> {
    match (text, text.strip_prefix("stop:")) {
        ("run", _) => Ok(OnPartition::Run),
        (_, Some(time)) => duration(time).map(OnPartition::Stop),
        _ => Err(format!("`{text}` is neither run nor stop:TIME")),
    }
}

/// Parses what becomes of a task whose node is lost: `replace`, or `keep`, for which this returns true.
///
/// # Errors
/// A message that names the text and the forms that are expected.
pub fn on_node_loss(text: &str) -> Result<bool, String> {
    match text {
        "replace" => Ok(false),
        "keep" => Ok(true),
        _ => Err(format!("`{text}` is neither replace nor keep")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_tasks_on_lost_nodes_is_read() {
        assert_eq!(on_partition("run"), Ok(OnPartition::Run));
        assert_eq!(on_partition("stop:1m"), Ok(OnPartition::Stop(Duration::from_secs(60))));
        assert!(on_partition("stop").is_err() && on_partition("stop:soon").is_err());
        assert_eq!((on_node_loss("keep"), on_node_loss("replace")), (Ok(true), Ok(false)));
        assert!(on_node_loss("drop").is_err());
    }

    #[test]
    fn sizes_cpus_and_durations_are_read_as_people_write_them() {
        assert_eq!(
            ["512", "64k", "256M", "1.5g", "1GiB"].map(|it| bytes(it).expect(it)),
            [512, 65_536, 268_435_456, 1_610_612_736, 1 << 30]
        );
        assert_eq!(["2", "0.5", ".25"].map(|it| cpus(it).expect(it)), [2_000_000_000, 500_000_000, 250_000_000]);
        let millis = |it: &str| duration(it).expect(it).as_millis();
        assert_eq!(["300ms", "10s", "1m30s", "2h", "1.5s"].map(millis), [300, 10_000, 90_000, 7_200_000, 1_500]);
        let huge = format!("1{}.000000000001g", "0".repeat(30));
        for bad in ["", "x", "-1", "1q", ".", "99999999999999999999g", &huge] {
            assert!(bytes(bad).is_err() && cpus(bad).is_err() && duration(bad).is_err(), "{bad}");
        }
        assert!(duration("10").is_err(), "a duration has a unit");
        for none in ["", "0", " ", "0s"] {
            assert_eq!(duration_or_none(none), Ok(None), "{none}");
        }
        assert_eq!(duration_or_none("1s"), Ok(Some(Duration::from_secs(1))));
        assert!(duration_or_none("1").is_err());
    }
}
