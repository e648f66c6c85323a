//! A process's stderr goes to a file in the run directory, and this hands its lines on to the supervisor's own stderr,
//! each with a prefix.
//!
//! Why a file and no pipe: workers and frontends outlive a killed supervisor by design. Writing to a pipe that nobody
//! reads fails with EPIPE, on which `eprintln!` panics; and one that is kept open but not read blocks the writer when
//! it is full. A file does neither, and the next supervisor goes on reading where the log is. The price is a look at
//! it every second, more often when there is much.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use delugefs_proto::exit::Exit;

use crate::escape::escape_line;
use crate::failure::Failure;

/// How often the file is looked at when something has come of late, and at least.
const POLL: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(1);
/// A log that was read to its end and is longer than this starts over, so that it cannot fill the run directory.
const LOG_MAX_BYTES: u64 = 1 << 20;
/// Longest line handed on in one piece.
const LINE_MAX_BYTES: usize = 8 << 10;
/// Lines kept to find out why a process ended.
const KEPT_LINES: usize = 40;

/// See the module's header.
pub struct LogTail {
    sink: Box<dyn Write + Send>,
    file: File,
    /// So far.
    read: u64,
    pause: Duration,
    prefix: String,
    partial: Vec<u8>,
    kept: VecDeque<String>,
}

impl LogTail {
    /// Follow the log from its present end. The second value is what the process is given as its stderr.
    pub fn open(path: &Path, prefix: &str) -> io::Result<(Self, File)> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let writer = options.open(path)?;
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let read = file.seek(SeekFrom::End(0))?;
        Ok((
            Self {
                sink: Box::new(io::stderr()),
                file,
                read,
                pause: POLL,
                prefix: prefix.into(),
                partial: Vec::new(),
                kept: VecDeque::new(),
            },
            writer,
        ))
    }

    /// What stands before each line from now on.
    pub fn set_prefix(&mut self, prefix: &str) {
        self.prefix = prefix.into();
    }

    /// How long to wait before the next look.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Hand on what was written since the last time.
    pub fn pump(&mut self) -> io::Result<()> {
        self.pause = (self.pause * 2).min(POLL_MAX);
        let mut chunk = [0; 16 << 10];
        loop {
            let n = match self.file.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    (self.pause, self.read) = (POLL, self.read + n as u64);
                    n
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for byte in &chunk[..n] {
                if *byte == b'\n' || self.partial.len() >= LINE_MAX_BYTES {
                    self.line();
                }
                if *byte != b'\n' {
                    self.partial.push(*byte);
                }
            }
        }
        if self.read > LOG_MAX_BYTES {
            // The writer appends, so it goes on at the new end.
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.read = 0;
        }
        Ok(())
    }

    /// Hand on the rest after the writer's end.
    pub fn finish(&mut self) -> io::Result<()> {
        self.pump()?;
        if !self.partial.is_empty() {
            self.line();
        }
        Ok(())
    }

    /// Why `program` ended, if it said so at its end: "program: message" and "Hint: ..." lines, as
    /// `proto::exit::report` writes them.
    pub fn reported(&self, program: &str, exit: Exit) -> Option<Failure> {
        let starts = |line: &String| line.strip_prefix(program).is_some_and(|rest| rest.starts_with(": "));
        let at = self.kept.iter().rposition(starts)?;
        let (mut message, mut hints) = (String::new(), Vec::new());
        for line in self.kept.iter().skip(at) {
            match line.strip_prefix("Hint: ") {
                Some(hint) => hints.push(hint),
                None if message.is_empty() => message = line[program.len() + 2..].to_string(),
                None => message = message + " " + line.trim(),
            }
        }
        Some(Failure { exit, message, hint: Some(hints.join("; ")).filter(|hints| !hints.is_empty()) })
    }

    /// The last thing it wrote.
    pub fn last_line(&self) -> Option<&str> {
        self.kept.iter().rev().map(String::as_str).find(|line| !line.trim().is_empty())
    }

    fn line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        // Our own terminal may be gone; the process goes on without it.
        let _ = self.sink.write_all(format!("[{}] {}\n", self.prefix, escape_line(&line)).as_bytes());
        if self.kept.len() == KEPT_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Sink(mpsc::Sender<String>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8(bytes.to_vec()).unwrap()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn follows_an_appending_writer_and_finds_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        std::fs::write(&path, "delugefs-diskworker: of an earlier life\n").unwrap();
        let (mut tail, mut writer) = LogTail::open(&path, "new disk").unwrap();
        let (sink, lines) = mpsc::channel();
        tail.sink = Box::new(Sink(sink));
        tail.finish().unwrap();
        assert_eq!((tail.reported("w", Exit::Failure), tail.last_line()), (None, None));
        writer.write_all(b"INFO starting\nthread panic").unwrap();
        tail.pump().unwrap();
        assert_eq!((tail.reported("w", Exit::Failure), tail.last_line()), (None, Some("INFO starting")));
        tail.set_prefix("1a2b3c4d");
        writer.write_all(b"k\x1bing\nw: /a is damaged: bad\nHint: run scrub\nHint: or restore").unwrap();
        tail.finish().unwrap();
        let expected = Failure::new(Exit::BadDisk, "/a is damaged: bad").hint("run scrub; or restore");
        assert_eq!(tail.reported("w", Exit::BadDisk), Some(expected));
        drop(tail);
        let lines: Vec<_> = lines.iter().take(2).collect();
        assert_eq!(lines, ["[new disk] INFO starting\n", "[1a2b3c4d] thread panick\\x1bing\n"]);
    }

    #[test]
    fn a_long_log_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let (mut tail, mut writer) = LogTail::open(&path, "x").unwrap();
        tail.sink = Box::new(io::sink());
        writer.write_all(&vec![b'x'; LOG_MAX_BYTES as usize + 1]).unwrap();
        tail.pump().unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
        writer.write_all(b"\nw: end\n").unwrap();
        tail.pump().unwrap();
        assert_eq!(tail.reported("w", Exit::Failure).unwrap().message, "end");
        // Who says nothing is looked at less often.
        let mut pauses: Vec<Duration> = Vec::new();
        for _ in 0..6 {
            tail.pump().unwrap();
            pauses.push(tail.pause());
        }
        assert!(pauses[0] > POLL && pauses[5] == POLL_MAX, "{pauses:?}");
        writer.write_all(b"more\n").unwrap();
        tail.pump().unwrap();
        assert_eq!(tail.pause(), POLL);
    }
}
