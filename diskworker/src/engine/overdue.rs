//! A file that is written anew again and again. Opening it for writing makes a seal worthless that is under way, and while that goes on
//! nobody else would see any version of it. So who opens one that was closed a while ago, and is not recorded since, has it sealed first.

use std::time::{Duration, Instant};

use delugefs_proto::ids::Ino;

use super::seal::Size;
use super::staged::Work;
use super::take::PLACED_MIN_BYTES;
use super::{Core, Engine};

/// How long a file that is closed and opened again may be shown nowhere else. Each such seal costs who opens it some milliseconds, and a
/// copy of the file.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);
/// Larger ones take too long to wait for, and may go to another disk of the host first.
const MAX_BYTES: u64 = PLACED_MIN_BYTES - 1;
/// What is being sealed is waited for so long; a disk that is slower has other worries.
const WAIT: Duration = Duration::from_secs(2);

impl Core {
    /// Whether [`Engine::seal_overdue`] has something to do before it is opened.
    pub(super) fn is_overdue(&self, ino: Ino) -> bool {
        self.staged.get(ino).is_some_and(|staged| staged.is_overdue(SHOWN_WITHIN))
    }
}

impl Engine {
    /// Seal a file that is about to be opened for writing. If that fails it is opened as it is.
    pub(super) fn seal_overdue(&self, ino: Ino) {
        if !self.store.staged_stat(ino).is_ok_and(|stat| stat.is_some_and(|stat| stat.size <= MAX_BYTES)) {
            return;
        }
        let deadline = Instant::now() + WAIT;
        let mut core = self.core();
        while core.staged.get(ino).is_some_and(|staged| staged.work == Work::Sealing) {
            if self.idle.wait_until(&mut core, deadline).timed_out() {
                return;
            }
        }
        drop(core);
        self.seal(ino, Size::Any);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::*;
    use crate::engine::Opening;

    fn open(engine: &Engine, ino: Ino) -> (u64, File) {
        let q = pb::Open { ino: ino.0, dir: 1, write: true, truncate: false };
        let Opening::File { handle, file } = engine.open(1, &q).unwrap().1 else { panic!() };
        (handle, file)
    }

    fn write(engine: &Engine, (handle, file): (u64, File), byte: u8, size: usize) {
        file.write_all_at(&vec![byte; size], 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
    }

    fn versions(engine: &Engine, ino: Ino) -> usize {
        let mut core = engine.core();
        let at = core.ns.locate(ino, Ino::ROOT).unwrap();
        core.ns.content_dots(&at).unwrap().len()
    }

    #[test]
    fn a_file_that_is_opened_again_and_again_is_recorded_now_and_then() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let threads = Arc::strong_count(engine);
        // The sealing threads never get to it in time.
        engine.seals.close();
        let begin = Instant::now();
        while Arc::strong_count(engine) + super::super::seal::SEALERS > threads {
            assert!(begin.elapsed() < Duration::from_secs(30), "they do not end");
            std::thread::yield_now();
        }
        for size in [100_000, MAX_BYTES as usize + 1] {
            let name = size.to_string().into();
            let q = pb::Create { dir: 1, name, mode: 0o600, uid: 1, gid: 1, ino: 0 };
            let (answer, opening) = engine.create(1, false, &q).unwrap();
            let Opening::File { handle, file } = opening else { panic!() };
            let ino = Ino(answer.node.unwrap().ino);
            write(engine, (handle, file), 1, size);
            for byte in 2..5 {
                let before = engine.stored(ino).unwrap();
                // Closed a moment ago, and then a while ago.
                for is_due in [false, true] {
                    if let Some(staged) = engine.core().staged.get_mut(ino) {
                        let now = Instant::now();
                        staged.closed = if is_due { now.checked_sub(SHOWN_WITHIN) } else { Some(now + 600 * WAIT) };
                    }
                    let opened = open(engine, ino);
                    let mut first = [0];
                    opened.1.read_exact_at(&mut first, 0).unwrap();
                    assert_eq!(first, [if is_due { byte + 9 } else { byte - 1 }]);
                    let is_recorded = engine.stored(ino).unwrap() != before;
                    assert_eq!(is_recorded, is_due && size <= MAX_BYTES as usize, "{size} bytes");
                    write(engine, opened, if is_due { byte } else { byte + 9 }, size);
                }
                assert_eq!(versions(engine, ino), 1, "none of them is a conflict");
            }
        }
        running.stop().unwrap();
    }
}
