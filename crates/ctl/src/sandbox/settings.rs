//! The faults of a cable, as users type them, as they are kept, and as they are shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Usage;

/// The longest delay.
const MOST_DELAY: Duration = Duration::from_secs(10);
/// The units of rates, in bits per second, as tc(8) has them.
const UNITS: [(&str, u64); 4] = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

/// The treatment of each frame on a cable, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
pub(crate) struct LinkSettings {
    /// Time that each frame takes, at most 10s: a packet between two such nodes takes it twice, and the answer too
    #[arg(long, value_name = "TIME", value_parser = delay, default_value = "0ms", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) delay: Duration,
    /// Time by which the delay of a frame may be shorter or longer; the order of frames stays
    #[arg(long, value_name = "TIME", value_parser = delay, default_value = "0ms", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) jitter: Duration,
    /// Share of the frames that is lost, such as 1% or 0.5%
    #[arg(long, value_name = "PERCENT", default_value = "0%", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) loss: Loss,
    /// Bits per second, such as 512kbit, 100mbit or 1gbit; what comes faster waits for up to 100 ms and is then lost
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub(crate) rate: Option<Rate>,
}

/// A share of frames, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Loss(f64);

/// Bits per second, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rate(u64);

fn delay(text: &str) -> Result<Duration, Usage> {
    let delay = crate::parse::duration(text)?;
    if delay > MOST_DELAY { Err(Usage(format!("`{text}` is longer than 10s"))) } else { Ok(delay) }
}

impl LinkSettings {
    /// Checks what one value says about another.
    pub(crate) fn check(&self) -> Result<(), Usage> {
        if self.jitter > self.delay {
            return Err(Usage("--jitter is at most --delay: no frame arrives before it is sent".into()));
        }
        Ok(())
    }

    /// Whether a cable with these settings is a good one.
    pub(crate) fn are_perfect(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the settings as lists print them as JSON.
    pub(crate) fn to_json(self) -> Value {
        let millis = |it: Duration| it.as_secs_f64() * 1_000.0;
        json!({
            "delayMs": millis(self.delay), "jitterMs": millis(self.jitter), "lossPercent": self.loss.0,
            "rateBits": self.rate.map(|rate| rate.0),
        })
    }
}

impl fmt::Display for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |name, it: Duration| (!it.is_zero()).then(|| format!("{name} {}", humantime::format_duration(it)));
        let loss = (self.loss.0 > 0.0).then(|| format!("loss {}%", self.loss.0));
        let rate = self.rate.map(|rate| format!("rate {rate}"));
        let parts = [time("delay", self.delay), time("jitter", self.jitter), loss, rate];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Loss {
    pub(crate) fn from_percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// The probability with which a frame is lost.
    pub(crate) fn probability(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Loss {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
        percent.and_then(Self::from_percent).ok_or_else(|| Usage(format!("`{text}` is not from 0% to 100%")))
    }
}

impl Rate {
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        (bits > 0).then_some(Self(bits))
    }

    /// Returns how long so many bytes take.
    pub(crate) fn time_for(self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.0 as f64)
    }
}

impl FromStr for Rate {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let number = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
        let bits = number.and_then(|(number, unit)| number.parse::<u64>().ok()?.checked_mul(*unit));
        let fail = || Usage(format!("`{text}` is not a rate above zero, such as 512kbit, 100mbit or 1gbit"));
        bits.and_then(Self::from_bits).ok_or_else(fail)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = UNITS.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)).unwrap_or(("bit", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: LinkSettings,
    }

    fn parse(words: &str) -> Result<LinkSettings, String> {
        let flags = Flags::try_parse_from(std::iter::once("link").chain(words.split_whitespace()));
        let settings = flags.map_err(|error| error.to_string())?.settings;
        settings.check().map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[test]
    fn settings_are_shown_as_they_are_typed() {
        for (typed, shown) in [
            ("--delay 40ms --jitter 5ms --loss 1% --rate 100mbit", "delay 40ms, jitter 5ms, loss 1%, rate 100mbit"),
            ("--loss 0.5% --rate 1500kbit", "loss 0.5%, rate 1500kbit"),
            ("--delay 500us --rate 1000mbit", "delay 500us, rate 1gbit"),
            ("", ""),
        ] {
            let settings = parse(typed).expect(typed);
            assert_eq!((settings.to_string().as_str(), settings.are_perfect()), (shown, shown.is_empty()));
        }
    }

    #[test]
    fn what_no_cable_can_be_is_refused_with_the_name_of_the_option() {
        for (typed, option) in [
            ("--delay -1ms", "--delay"),
            ("--delay 40", "--delay"),
            ("--delay 11s", "--delay"),
            ("--delay 4ms --jitter 5ms", "--jitter"),
            ("--jitter 5ms", "--jitter"),
            ("--loss 100.1%", "--loss"),
            ("--loss -1%", "--loss"),
            ("--loss NaN%", "--loss"),
            ("--loss 0.1", "--loss"),
            ("--rate 0mbit", "--rate"),
            ("--rate -1mbit", "--rate"),
            ("--rate 100", "--rate"),
            ("--rate 99999999999999999999gbit", "--rate"),
        ] {
            let refused = parse(typed).expect_err(typed);
            assert!(refused.contains(option), "{typed}: {refused}");
        }
    }
}
