use super::*;

/// Parses a time in UTC.
fn utc(text: &str) -> Timestamp {
    let time: jiff::Timestamp = text.parse().expect("a time in RFC 3339");
    Timestamp(u64::try_from(time.as_millisecond()).expect("after 1970"))
}

fn schedule(text: &str, zone: &str) -> Schedule {
    Schedule::parse(text, zone).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the next times after this one, as the clocks of the time zone show them.
fn next(text: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = schedule(text, zone);
    let times = std::iter::successors(schedule.next_after(utc(after)), |time| schedule.next_after(*time));
    let shown = |time: Timestamp| schedule.zoned(time).expect("it is in range").strftime("%a %F %R %:z").to_string();
    times.take(count).map(shown).collect()
}

#[test]
fn the_next_times_are_those_of_crontab() {
    for (text, zone, after, expected) in [
        (
            "*/20 * * * *",
            "UTC",
            "2026-11-28T12:00:00Z",
            &["Sat 2026-11-28 12:20 +00:00", "Sat 2026-11-28 12:40 +00:00"],
        ),
        (
            "*/20 * * * *",
            "UTC",
            "2026-11-28T11:59:59.999Z",
            &["Sat 2026-11-28 12:00 +00:00", "Sat 2026-11-28 12:20 +00:00"],
        ),
        (
            "*/20 * * * *",
            "UTC",
            "2026-11-28T12:00:00.001Z",
            &["Sat 2026-11-28 12:20 +00:00", "Sat 2026-11-28 12:40 +00:00"],
        ),
        (
            "@daily",
            "Asia/Kolkata",
            "2026-11-28T12:00:00Z",
            &["Sun 2026-11-29 00:00 +05:30", "Mon 2026-11-30 00:00 +05:30"],
        ),
        (
            "30 8 * * mon-fri",
            "UTC",
            "2026-11-27T09:00:00Z",
            &["Mon 2026-11-30 08:30 +00:00", "Tue 2026-12-01 08:30 +00:00"],
        ),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", &["Tue 2028-02-29 00:00 +00:00", "Sun 2032-02-29 00:00 +00:00"]),
        // As in crontab(5), one of both days is enough if both are given.
        ("0 0 1 * fri", "UTC", "2026-11-28T00:00:00Z", &["Tue 2026-12-01 00:00 +00:00", "Fri 2026-12-04 00:00 +00:00"]),
        ("0 0 * * 7", "UTC", "2026-11-28T00:00:00Z", &["Sun 2026-11-29 00:00 +00:00", "Sun 2026-12-06 00:00 +00:00"]),
    ] {
        assert_eq!(next(text, zone, after, 2), expected, "{text} {zone}");
    }
}

#[test]
fn a_time_that_is_left_out_is_made_up_for_and_one_that_comes_twice_runs_once() {
    let zurich = "Europe/Zurich";
    // 02:00 to 03:00 is left out on the 29th of March, and comes twice on the 25th of October.
    for (text, after, expected) in [
        (
            "30 2 * * *",
            "2026-03-28T00:00:00Z",
            &["Sat 2026-03-28 02:30 +01:00", "Sun 2026-03-29 03:00 +02:00", "Mon 2026-03-30 02:30 +02:00"][..],
        ),
        (
            "30 2 * * *",
            "2026-10-24T00:00:00Z",
            &["Sat 2026-10-24 02:30 +02:00", "Sun 2026-10-25 02:30 +02:00", "Mon 2026-10-26 02:30 +01:00"],
        ),
        (
            "0 * * * *",
            "2026-03-28T23:30:00Z",
            &["Sun 2026-03-29 01:00 +01:00", "Sun 2026-03-29 03:00 +02:00", "Sun 2026-03-29 04:00 +02:00"],
        ),
        (
            "30 * * * *",
            "2026-10-24T23:45:00Z",
            &["Sun 2026-10-25 02:30 +02:00", "Sun 2026-10-25 02:30 +01:00", "Sun 2026-10-25 03:30 +01:00"],
        ),
        (
            "*/30 2 * * *",
            "2026-03-28T12:00:00Z",
            &["Mon 2026-03-30 02:00 +02:00", "Mon 2026-03-30 02:30 +02:00", "Tue 2026-03-31 02:00 +02:00"],
        ),
    ] {
        assert_eq!(next(text, zurich, after, 3), expected, "{text}");
    }
}

#[test]
fn what_is_no_schedule_is_refused_with_the_reason() {
    for (text, zone, expected) in [
        ("", UTC, "is not a schedule"),
        ("* * * *", UTC, "is not a schedule"),
        ("* * * * * *", UTC, "is not a schedule"),
        ("* * * * * * 2030", UTC, "is not a schedule"),
        ("60 * * * *", UTC, "is not a schedule"),
        ("* 24 * * *", UTC, "is not a schedule"),
        ("*/0 * * * *", UTC, "is not a schedule"),
        ("* * * * frday", UTC, "is not a schedule"),
        ("@reboot", UTC, "is not a schedule"),
        ("-1 * * * *", UTC, "is not a schedule"),
        ("10-5 * * * *", UTC, "is not a schedule"),
        ("0 0 30 2 *", UTC, "`0 0 30 2 *` never comes"),
        ("0 0 31 4,6,9,11 *", UTC, "never comes"),
        ("* * * * *", "Europe/Atlantis", "`Europe/Atlantis` is no time zone"),
        ("* * * * *", "", "`` is no time zone"),
        ("* * * * *", "../../etc/passwd", "is no time zone"),
    ] {
        let error = Schedule::parse(text, zone).expect_err(text).to_string();
        assert!(error.contains(expected), "{text} {zone}: {error}");
    }
    let long = Schedule::parse(&format!("{}0 * * * *", "0,".repeat(1_000)), UTC).expect_err("it is too long");
    assert!(long.to_string().len() < 500, "{long}");
}

#[test]
fn schedules_are_the_same_whatever_their_spaces() {
    let schedule = schedule("  0\t9  * * MON ", "europe/zurich");
    assert_eq!(schedule.to_string(), "0 9 * * MON Europe/Zurich");
    assert_eq!(schedule, super::tests::schedule("0 9 * * MON", "Europe/Zurich"));
    assert_ne!(schedule, super::tests::schedule("0 9 * * MON", "Europe/Vienna"));
    assert_ne!(schedule, super::tests::schedule("0 8 * * MON", "Europe/Zurich"));
}

#[test]
fn of_the_times_that_have_come_the_newest_is_due_and_the_others_are_counted() {
    let each_minute = schedule("* * * * *", UTC);
    let due = |after: &str, now: &str| each_minute.due(utc(after), utc(now)).map(|due| (due.at, due.missed));
    let noon = "2026-11-28T12:00:00Z";
    assert_eq!(due(noon, noon), None);
    assert_eq!(due(noon, "2026-11-28T12:00:59.999Z"), None);
    assert_eq!(due(noon, "2026-11-28T12:01:00Z"), Some((utc("2026-11-28T12:01:00Z"), 0)));
    assert_eq!(due(noon, "2026-11-28T12:03:30Z"), Some((utc("2026-11-28T12:03:00Z"), 2)));
    assert_eq!(due(noon, "2026-11-28T11:00:00Z"), None, "the clock was set back");
    // An outage of years costs no more than one of a week.
    assert_eq!(due(noon, "2036-11-28T12:00:30Z"), Some((utc("2036-11-28T12:00:00Z"), COUNT_BOUND)));
}

#[test]
fn looking_back_finds_the_same_times_as_looking_forward() {
    for zone in [UTC, "Europe/Zurich", "America/New_York", "Australia/Lord_Howe"] {
        for text in ["30 2 * * *", "*/30 * * * *", "0 * * * *", "*/15 2 * * *", "15 1,2,3 * * *"] {
            let schedule = schedule(text, zone);
            for begin in ["2026-03-01T00:00:00Z", "2026-09-25T00:00:00Z"] {
                let mut time = schedule.next_after(utc(begin)).expect("it comes");
                for _ in 0..2_500 {
                    assert_eq!(schedule.last_until(time), Some(time), "{schedule}");
                    let next = schedule.next_after(time).expect("it comes");
                    assert!(next > time);
                    assert_eq!(schedule.last_until(Timestamp(next.0 - 1)), Some(time), "{schedule}");
                    time = next;
                }
            }
        }
    }
}
