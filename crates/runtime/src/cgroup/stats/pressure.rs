//! Pressure stall information: the time that processes waited for a resource (Documentation/accounting/psi.rst).

use serde::Serialize;

use super::is_none;
use crate::cgroup::Folder;

/// The pressure on one resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Time in which at least one process waited.
    #[serde(skip_serializing_if = "is_none")]
    pub some: PressureData,
    /// Time in which all processes waited.
    #[serde(skip_serializing_if = "is_none")]
    pub full: PressureData,
}

/// Shares of the time in percent, and the total time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PressureData {
    /// Share of the last 10 seconds.
    pub avg10: f64,
    /// Share of the last minute.
    pub avg60: f64,
    /// Share of the last five minutes.
    pub avg300: f64,
    /// Total time in microseconds.
    pub total: u64,
}

/// Reads a pressure file; `None` if the kernel does not provide it.
pub(super) fn read(folder: &Folder, file: &str) -> Option<Pressure> {
    Some(parse(&folder.read(file).ok()?))
}

fn parse(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let data = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
                "total" => data.total = value.parse().unwrap_or(0),
                _ => (),
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_and_nothing_is_left_out() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=70";
        let pressure = parse(&format!("{some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"));
        let json = serde_json::to_string(&pressure).expect("plain data");
        assert_eq!(json, r#"{"some":{"avg10":1.5,"avg60":0.25,"avg300":0.0,"total":70}}"#);
    }
}
