//! Tests of a log that is written and read at the same time.

use super::*;

/// A log of 2,000 bytes in a folder of its own.
struct Log {
    folder: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn writer(&self, most: u64) -> LogWriter {
        LogWriter::open(&self.path(), most).expect("it opens")
    }
}

fn next(reader: &mut LogReader) -> Option<(u64, u32, String)> {
    let line = reader.next_line().expect("it is readable")?;
    Some((line.number, line.stream, String::from_utf8_lossy(&line.text).into_owned()))
}

fn line(number: u64, stream: u32, text: &str) -> Option<(u64, u32, String)> {
    Some((number, stream, text.to_owned()))
}

fn write(writer: &mut LogWriter, stream: usize, text: &str) {
    writer.write(stream, text.as_bytes()).expect("it is written");
}

#[test]
fn lines_are_read_back_in_order_through_rotation_and_growth() {
    let log = Log::new();
    let mut writer = log.writer(2_000);
    write(&mut writer, 1, "one\ntw");
    write(&mut writer, 2, "error\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, "one"));
    assert_eq!(next(&mut reader), line(1, 2, "error"), "a line without an end is not read yet");
    assert_eq!(next(&mut reader), None);
    write(&mut writer, 1, "o\n");
    assert_eq!(next(&mut reader), line(2, 1, "two"));
    for number in 0..100 {
        write(&mut writer, 1, &format!("line {number}\n"));
        let expected = line(3 + number, 1, &format!("line {number}"));
        assert_eq!(next(&mut reader), expected, "a reader that keeps up misses nothing");
    }
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |it| it.len());
    assert!(size(&log.path()) + size(&older(&log.path())) <= 2_000);
}

#[test]
fn a_long_line_stays_one_line_up_to_the_bound() {
    let log = Log::new();
    let mut writer = log.writer(20 << 20);
    let mut reader = LogReader::open(&log.path());
    let long = "x".repeat(100_000);
    write(&mut writer, 1, &long);
    write(&mut writer, 2, "between\n");
    write(&mut writer, 1, "\nnext\n");
    assert_eq!(next(&mut reader), line(0, 2, "between"));
    assert_eq!(next(&mut reader), line(1, 1, &long));
    assert_eq!(next(&mut reader), line(2, 1, "next"));
    let endless = vec![b'y'; 2 * LINE_BOUND + 10];
    for chunk in endless.chunks(8 << 10) {
        writer.write(1, chunk).expect("it is written");
        assert!(writer.unfinished[0].pending.len() < ENTRY_BOUND, "the writer keeps no more in memory");
    }
    writer.finish().expect("it is written");
    let sizes: Vec<_> = std::iter::from_fn(|| next(&mut reader)).map(|(.., text)| text.len()).collect();
    assert_eq!(sizes, [LINE_BOUND, LINE_BOUND, 10]);
}

#[test]
fn a_reader_that_is_too_slow_learns_which_lines_it_lost() {
    let log = Log::new();
    let mut writer = log.writer(2_000);
    write(&mut writer, 1, "first\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, "first"));
    for number in 1..1_000 {
        write(&mut writer, 1, &format!("line {number}\n"));
    }
    let rest: Vec<_> = std::iter::from_fn(|| next(&mut reader)).collect();
    assert!(rest.iter().all(|(number, _, text)| *text == format!("line {number}")), "{rest:?}");
    let numbers: Vec<u64> = rest.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers.last(), Some(&999));
    let older = std::fs::read_to_string(older(&log.path())).expect("the log has rotated");
    let oldest: u64 = older.lines().next().and_then(|header| header.parse().ok()).expect("it begins with a number");
    let gaps: Vec<u64> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).map(|pair| pair[1]).collect();
    assert_eq!(gaps, [oldest], "what is left is read from its first line on: {numbers:?}");
}

#[test]
fn lines_that_are_appended_just_before_a_rotation_are_read() {
    let log = Log::new();
    let mut writer = log.writer(2_000);
    write(&mut writer, 1, "first\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, "first"));
    assert_eq!(next(&mut reader), None);
    write(&mut writer, 1, "last\n");
    writer.rotate().expect("it rotates");
    write(&mut writer, 1, "new\n");
    // The reader read the end before all this, and finds the newer file only now.
    assert!(reader.move_on().expect("it is readable"), "there is more to read");
    assert_eq!(next(&mut reader), line(1, 1, "last"));
    assert_eq!(next(&mut reader), line(2, 1, "new"));
}

#[test]
fn a_log_goes_on_after_a_failed_rotation() {
    let log = Log::new();
    let mut writer = log.writer(200);
    let obstacle = log.path().with_extension("new");
    std::fs::create_dir(&obstacle).expect("a folder");
    let fill = "x".repeat(60) + "\n";
    write(&mut writer, 1, &fill);
    writer.write(1, fill.as_bytes()).expect_err("a folder is in the way of the new file");
    std::fs::remove_dir(&obstacle).expect("its own folder");
    write(&mut writer, 1, "after\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, fill.trim_end()));
    assert_eq!(next(&mut reader), line(2, 1, "after"), "the line that was lost has its number");
}

/// Lets the writer fail, as on a full disk, while it writes these bytes to standard output.
fn lose(log: &Log, writer: &mut LogWriter, text: &str) {
    let good = std::mem::replace(&mut writer.file, File::open(log.path()).expect("the log"));
    writer.write(1, text.as_bytes()).expect_err("the file is open for reading alone");
    writer.file = good;
}

#[test]
fn lines_that_could_not_be_written_leave_a_gap_in_the_numbers() {
    let log = Log::new();
    let mut writer = log.writer(20 << 20);
    write(&mut writer, 1, "one\n");
    lose(&log, &mut writer, "two\nthree\n");
    write(&mut writer, 2, "four\n");
    // A line of three entries of which the second is lost, and the third alone would be taken for the second.
    let part = "x".repeat(ENTRY_BOUND);
    write(&mut writer, 1, &part);
    lose(&log, &mut writer, &part);
    write(&mut writer, 1, "end\n");
    write(&mut writer, 1, "six\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, "one"));
    assert_eq!(next(&mut reader), line(3, 2, "four"));
    assert_eq!(next(&mut reader), line(5, 1, "six"));
    assert_eq!(next(&mut reader), None);
    drop(writer);
    assert_eq!(log.writer(20 << 20).lines, 6, "the next writer counts on");
}

#[test]
fn a_line_that_is_half_written_beside_a_lost_one_is_lost_too() {
    let log = Log::new();
    let mut writer = log.writer(20 << 20);
    let part = "x".repeat(ENTRY_BOUND);
    write(&mut writer, 2, &part);
    lose(&log, &mut writer, "zero\n");
    write(&mut writer, 2, "end\n");
    write(&mut writer, 1, "two\n");
    write(&mut writer, 2, &part);
    lose(&log, &mut writer, "three\n");
    write(&mut writer, 1, "four\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(2, 1, "two"));
    assert_eq!(next(&mut reader), line(4, 1, "four"));
    drop(writer);
    let mut writer = log.writer(20 << 20);
    write(&mut writer, 2, "five\n");
    assert_eq!(next(&mut reader), line(5, 2, "five"), "the next writer ends no line of before the gap");
    assert_eq!(next(&mut reader), None);
}

#[test]
fn a_new_writer_goes_on_where_a_killed_one_stopped() {
    let log = Log::new();
    let mut killed = log.writer(20 << 20);
    write(&mut killed, 1, "one\n");
    write(&mut killed, 1, &"x".repeat(ENTRY_BOUND));
    drop(killed);
    let mut torn = File::options().append(true).open(log.path()).expect("the log");
    torn.write_all(b"17 1 to").expect("it is written");
    let mut writer = log.writer(20 << 20);
    write(&mut writer, 1, "two\n");
    let mut reader = LogReader::open(&log.path());
    assert_eq!(next(&mut reader), line(0, 1, "one"));
    assert_eq!(next(&mut reader), line(1, 1, &"x".repeat(ENTRY_BOUND)));
    assert_eq!(next(&mut reader), line(2, 1, "two"));
    assert_eq!(next(&mut reader), None);
}
