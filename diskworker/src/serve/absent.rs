//! What a request needs of a content that is not here, or not whole: it is fetched, or read from another disk of the host while it comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::local_pb as pb;
use delugefs_proto::local_pb::{Opened, Reply, reply};
use nix::errno::Errno;

use super::local::{Done, opened, reply};
use super::neighbours::Neighbours;
use crate::content::Damage;
use crate::engine::{Answer, Engine, Opening, SessionId};
use crate::fetch::{Fetcher, Wanted};

/// Fetches of a content for one who opens or cuts it: on a disk that makes room it may have gone again before it is opened.
const FETCHES: u32 = 3;
/// So much of what somebody could not read is tried here, in bytes: more than he reads at once.
const UNREAD_MAX_BYTES: u64 = 4 << 20;
/// Versions of a file that are fetched for one who opens or cuts it, each of which was replaced elsewhere before it was here.
const VERSIONS: u32 = 30;
/// Bytes of them above which there are no more than [`FETCHES`].
const VERSIONS_BYTES: u64 = 64 << 20;
/// The same for what it has taken.
const VERSIONS_TIME: Duration = Duration::from_secs(60);

/// What came of looking for a content that was not here.
pub(super) enum Got<T> {
    /// It is here.
    Whole,
    /// What it is needed for can be had without it.
    Instead(T),
    /// The file has another one by now.
    Other,
}

/// Do what may need a content that is not here: `get` it then, and try again. With `here` EAGAIN instead. ETIMEDOUT, as for one that
/// does not come, when the file always has another one by then: nothing is damaged, and later it may succeed.
pub(super) fn with_content<T>(
    here: bool,
    act: impl Fn() -> FsResult<T>,
    absent: impl Fn() -> FsResult<Option<Wanted>>,
    mut get: impl FnMut(Wanted) -> FsResult<Got<T>>,
) -> FsResult<T> {
    let (mut last, mut versions, mut bytes, mut fetched, mut came) = (None, 0, 0u64, 0, false);
    let begin = Instant::now();
    loop {
        let error = match act() {
            Err(error) if error.errno == Errno::EIO => error,
            done => return done,
        };
        let Some(wanted) = absent()? else {
            // Others may have fetched it between the two looks. If it is there and cannot be used something else is wrong.
            if std::mem::replace(&mut came, true) {
                return Err(error);
            }
            continue;
        };
        if here {
            return Err(Errno::EAGAIN.into());
        }
        if last.replace(wanted) != Some(wanted) {
            (versions, bytes, fetched) = (versions + 1, bytes.saturating_add(wanted.size), 0);
        }
        let is_much = bytes > VERSIONS_BYTES || begin.elapsed() > VERSIONS_TIME;
        if versions > if is_much { FETCHES } else { VERSIONS } {
            let replaced = versions - 1;
            let text = format!("the file was replaced {replaced} times on other disks while its content was fetched");
            return Err(FsError::new(Errno::ETIMEDOUT, text));
        }
        if fetched == FETCHES {
            return Err(error);
        }
        came = false;
        match get(wanted)? {
            Got::Whole => fetched += 1,
            Got::Instead(done) => return Ok(done),
            Got::Other => {}
        }
    }
}

/// Open, also what is not (all) on this disk: readers get the file of another disk of this host, or a large content while it
/// comes; the others wait for it.
pub(super) fn open(
    engine: &Engine,
    fetcher: &Arc<Fetcher>,
    neighbours: &Neighbours,
    (session, here): (SessionId, bool),
    q: &pb::Open,
) -> FsResult<Done> {
    let absent = || engine.absent(Ino(q.ino), Ino(q.dir));
    let get = |wanted: Wanted| {
        // What is told of the file and what can be read must be of one version; while others were asked, another host may
        // have replaced it.
        let current = || -> FsResult<Option<Answer>> {
            let node = engine.get_attr(&pb::GetAttr { ino: q.ino, dir: q.dir })?;
            Ok((absent()? == Some(wanted)).then_some(node))
        };
        if !q.write
            && let Some(file) = neighbours.open(&wanted)
        {
            return Ok(match current()? {
                Some(node) => Got::Instead(opened((node, Opening::File { handle: 0, file }))),
                None => Got::Other,
            });
        }
        if !q.write
            && let Some((handle, file)) = fetcher.open(session, wanted)?
        {
            let node = match current() {
                Ok(Some(node)) => node,
                // Nobody will hear of the handle, nor close it.
                other => {
                    fetcher.close(session, handle);
                    return other.map(|_| Got::Other);
                }
            };
            let body = Opened { handle, partial: true, size: wanted.size, ..Opened::default() };
            let reply = Reply { body: Some(reply::Body::Opened(body)), ..reply(node) };
            return Ok(Got::Instead((reply, Some(file.into()))));
        }
        fetcher.whole(wanted).map(|()| Got::Whole)
    };
    // What cannot be read in places is opened where it can: that needs no room.
    if !q.write
        && let Some(wanted) = engine.recorded(Ino(q.ino), Ino(q.dir))?
        && engine.store.damage(wanted.content) == Some(Damage::Unreadable)
        && let Some(file) = neighbours.open(&wanted)
    {
        let node = engine.get_attr(&pb::GetAttr { ino: q.ino, dir: q.dir })?;
        if engine.recorded(Ino(q.ino), Ino(q.dir))? == Some(wanted) {
            return Ok(opened((node, Opening::File { handle: 0, file })));
        }
    }
    with_content(here, || engine.open(session, q).map(opened), absent, get)
}

/// Somebody could not read what was opened. What cannot be read here either is looked at as a whole soon, in the background.
pub(super) fn unread(engine: &Engine, fetcher: &Fetcher, neighbours: &Neighbours, q: &pb::Unread) -> FsResult<()> {
    let range = q.offset..q.offset.saturating_add(q.length.min(UNREAD_MAX_BYTES));
    let neighbour_asks = !q.content.is_empty();
    let content = match neighbour_asks {
        true => Some(ContentId::from_slice(&q.content).ok_or(Errno::EINVAL)?),
        false => engine.recorded(Ino(q.ino), Ino(q.dir))?.map(|wanted| wanted.content),
    };
    let Some(content) = content else { return Ok(()) };
    // Then it was another one's that he has read.
    let was_known = engine.store.damage(content).is_some();
    if engine.store.is_unreadable(content, range.clone())? {
        fetcher.suspect(content);
    }
    if !neighbour_asks && (was_known || engine.store.has(content)?.is_none()) {
        neighbours.unread(content, range);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// On a lazy disk a content may be let go again between its coming and its use.
    #[test]
    fn a_content_that_has_gone_again_is_fetched_a_few_times() {
        let wanted = Wanted { content: ContentId([7; 32]), size: 9000, pieces: None };
        let eio = || FsError::new(Errno::EIO, "the content is missing on this disk");
        for gone_again in [0, 1, FETCHES - 1, FETCHES] {
            let (acts, fetches) = (Cell::new(0), Cell::new(0));
            let act = || {
                acts.set(acts.get() + 1);
                if acts.get() > gone_again + 1 { Ok("cut") } else { Err(eio()) }
            };
            let get = |of| {
                assert_eq!(of, wanted);
                fetches.set(fetches.get() + 1);
                Ok(Got::Whole)
            };
            let done = with_content(false, act, || Ok(Some(wanted)), get).map_err(|error| error.errno);
            assert_eq!(done, if gone_again < FETCHES { Ok("cut") } else { Err(Errno::EIO) });
            assert_eq!(fetches.get(), FETCHES.min(gone_again + 1));
        }
        // It came from elsewhere between two looks.
        let acts = Cell::new(0);
        let act = || match acts.replace(acts.get() + 1) {
            0 => Err(eio()),
            _ => Ok("cut"),
        };
        assert_eq!(with_content(false, act, || Ok(None), |_| panic!("it has come")), Ok("cut"));
        // It is here: then something else is wrong. Nor does another errno say that it is missing.
        let get = |_| -> FsResult<Got<()>> { panic!("it is not missing") };
        assert_eq!(with_content(false, || Err(eio()), || Ok(None), get), Err(eio()));
        let full = || Err(Errno::ENOSPC.into());
        assert_eq!(with_content(false, full, || Ok(Some(wanted)), get), Err(Errno::ENOSPC.into()));
        // Who does not wait is told, and only what has to be waited for.
        assert_eq!(with_content(true, || Err(eio()), || Ok(Some(wanted)), get), Err(Errno::EAGAIN.into()));
        assert_eq!(with_content(true, || Err(eio()), || Ok(None), get), Err(eio()));
    }

    /// Each fetch is of what the file had a moment ago.
    #[test]
    fn a_file_that_is_replaced_while_it_is_fetched_is_no_damage() {
        let cases =
            [(9000, FETCHES), (9000, VERSIONS - 1), (9000, VERSIONS), (1 << 30, FETCHES - 1), (1 << 30, FETCHES)];
        for ((size, replaced), is_other) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            let wanted = |n: u32| Wanted { content: ContentId([n as u8; 32]), size, pieces: None };
            let most = if size > VERSIONS_BYTES { FETCHES } else { VERSIONS };
            let fetches = Cell::new(0);
            let act = || match fetches.get() > replaced {
                true => Ok("open"),
                false => Err(FsError::new(Errno::EIO, "the content is missing on this disk")),
            };
            let get = |of| {
                assert_eq!(of, wanted(fetches.get()));
                fetches.set(fetches.get() + 1);
                Ok(if is_other { Got::Other } else { Got::Whole })
            };
            let done = with_content(false, act, || Ok(Some(wanted(fetches.get()))), get).map_err(|error| error.errno);
            assert_eq!(done, if replaced < most { Ok("open") } else { Err(Errno::ETIMEDOUT) });
        }
    }
}
