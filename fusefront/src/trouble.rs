//! Errors a person should know of, in the log: the program that gets them knows only a number. A failing or full disk
//! fails many operations, so each sentence is said once in a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use delugefs_proto::errno::FsError;
use nix::errno::Errno;
use parking_lot::Mutex;

/// Before the same sentence is said again.
const SILENCE: Duration = Duration::from_secs(60);
/// Sentences remembered.
const REMEMBERED_MAX: usize = 200;

static SAID: Mutex<Option<HashMap<String, Instant>>> = Mutex::new(None);

/// Log an error an operation ends with, if it is trouble: the disk's, another disk's, or what the worker has a sentence for.
pub fn log(error: &FsError) {
    let is_disk = matches!(error.errno, Errno::EIO | Errno::EROFS | Errno::ESHUTDOWN);
    let is_full = matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT) && !error.message.is_empty();
    let is_remote = matches!(error.errno, Errno::EHOSTUNREACH | Errno::ETIMEDOUT) && !error.message.is_empty();
    if !(is_disk || is_full || is_remote) || !is_news(error.to_string(), Instant::now()) {
        return;
    }
    match is_disk {
        true => tracing::error!("{error}"),
        false => tracing::warn!("{error}"),
    }
}

fn is_news(sentence: String, now: Instant) -> bool {
    let mut said = SAID.lock();
    let said = said.get_or_insert_default();
    if said.len() >= REMEMBERED_MAX {
        said.retain(|_, at| now.duration_since(*at) < SILENCE);
    }
    // Too many different ones within a minute: those said are enough.
    let is_room = said.len() < REMEMBERED_MAX;
    match said.get_mut(&sentence) {
        Some(at) if now.duration_since(*at) < SILENCE => false,
        Some(at) => {
            *at = now;
            true
        }
        None => is_room && said.insert(sentence, now).is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_said_once_in_a_while_and_not_too_many() {
        let now = Instant::now();
        assert!(is_news("a".into(), now) && !is_news("a".into(), now));
        assert!(is_news("a".into(), now + SILENCE) && !is_news("a".into(), now + SILENCE));
        let many = (0..1000).filter(|n| is_news(format!("b{n}"), now + SILENCE)).count();
        assert_eq!(many, REMEMBERED_MAX - 1);
        assert!(is_news("c".into(), now + SILENCE * 2));
    }
}
