//! Who asked for what a thread does, and whether he is there still. A worker that hung has requests under way when it goes on: who asked
//! has been answered by another disk since, and to do it now would be a second time, after what came since.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;

thread_local! {
    static ASKER: RefCell<Option<Arc<UnixStream>>> = const { RefCell::new(None) };
}

/// While this lives, what this thread does was asked for over this connection.
pub struct Asked(());

/// See [`Asked`].
pub fn asked_over(socket: &Arc<UnixStream>) -> Asked {
    ASKER.set(Some(socket.clone()));
    Asked(())
}

impl Drop for Asked {
    fn drop(&mut self) {
        ASKER.set(None);
    }
}

/// To be called when nothing more is to be waited for before a change is made. What nobody in particular asked for goes on.
pub(super) fn check_asked() -> FsResult<()> {
    match ASKER.with_borrow(|asker| asker.as_ref().is_some_and(|socket| crate::os::has_hung_up(socket))) {
        true => Err(FsError::new(Errno::ECONNRESET, "who asked for it has gone")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use delugefs_proto::local_pb as pb;

    use super::*;
    use crate::engine::Opening;
    use crate::engine::recover::tests::fresh;

    #[test]
    fn nothing_is_changed_for_who_has_gone() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let asked = asked_over(&Arc::new(ours));
        let make = |name: &'static str| {
            let q = pb::Create { dir: 1, name: name.into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
            engine.create(1, false, &q).map(|(answer, opening)| {
                let Opening::File { handle, .. } = opening else { panic!() };
                (answer.node.unwrap().ino, handle)
            })
        };
        let (ino, handle) = make("first").unwrap();
        engine.close(1, handle, false).unwrap();
        drop(theirs);
        let open = |truncate| engine.open(1, &pb::Open { ino, dir: 1, write: true, truncate }).map(drop);
        let size = || engine.set_attr(1, &pb::SetAttr { ino, dir: 1, size: Some(5), ..Default::default() }).map(drop);
        let unlink = || engine.unlink(1, false, &pb::Unlink { dir: 1, name: "first".into(), expect_ino: 0 }).map(drop);
        for done in [make("second").map(drop), open(true), open(false), size(), unlink()] {
            assert_eq!(done.unwrap_err().errno, Errno::ECONNRESET);
        }
        assert!(!engine.store.is_staged(delugefs_proto::ids::Ino(ino)).unwrap());
        drop(asked);
        unlink().unwrap();
        assert_eq!(
            engine.read_dir(&pb::ReadDir { dir: 1, limit: 10, ..Default::default() }).unwrap().1.entries.len(),
            0
        );
        assert!(engine.store.staged().unwrap().is_empty());
        running.stop().unwrap();
    }
}
