//! Open files: making, opening and closing them, passing descriptors, fsync.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::FILE_MAX_BYTES;
use delugefs_proto::local_pb as pb;
use delugefs_proto::record::{Data, Dot};
use nix::errno::Errno;

use super::meta::{Answer, name, perm, proposed};
use super::seal::Size;
use super::staged::{Closed, Staged, Work};
use super::{Core, Engine, SessionId, asker};
use crate::content::Stamp;
use crate::fetch::Wanted;
use crate::namespace::{Making, Node};

/// What an open hands out.
pub enum Opening {
    /// A descriptor, and the handle to close it with (0 for reading).
    File {
        /// For Close.
        handle: u64,
        /// To be passed.
        file: File,
    },
    /// The content itself.
    Inline(Bytes),
}

impl Engine {
    /// A number that no other handle of this life of the process has.
    pub fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// Create: a new regular file, open for reading and writing.
    pub fn create(&self, session: SessionId, retry: bool, q: &pb::Create) -> FsResult<(Answer, Opening)> {
        self.check_creatable()?;
        let (dir, name, ino) = (Ino(q.dir), name(&q.name)?, proposed(q.ino));
        if retry && let Some(done) = self.created_before(session, dir, &name, ino)? {
            return Ok(done);
        }
        self.wait_for_room();
        let handle = self.new_handle();
        // Before the lock: making a file is the slowest part, and its number is nobody else's.
        let file = self.store.stage_new(ino)?;
        // What is shown while it is open are the staged file's times, and afterwards the record's: nobody shall see them move.
        let stat = nix::sys::stat::fstat(&file).ok();
        let made_ns = stat.as_ref().map(crate::os::mtime_ns);
        let made = stat.as_ref().map(Stamp::of);
        let result = self.change(Some(session), |core| {
            let making = Making { dir, name: &name, perm: perm(q.mode, q.uid, q.gid) };
            let node = core.ns.make_file(&making, ino, Data::Empty, made_ns)?;
            let base = core.ns.locate(ino, dir).and_then(|at| core.ns.content_dots(&at))?;
            let base = Some(base);
            core.staged.insert(ino, Staged { dir, base, made, unwritten: true, ..Staged::default() });
            core.staged.open(handle, session, ino);
            Ok(Answer { node: Some(node.attr()), dir: core.dir_attr(dir), seq: core.ns.seq(), ..Answer::default() })
        });
        match result {
            Ok(answer) => Ok((answer, Opening::File { handle, file })),
            Err(error) => {
                self.discard_staged(ino);
                Err(error)
            }
        }
    }

    /// The answer to a Create that was carried out before its first answer was lost. Its file may have been sealed since.
    fn created_before(
        &self,
        session: SessionId,
        dir: Ino,
        name: &delugefs_proto::record::Name,
        ino: Ino,
    ) -> FsResult<Option<(Answer, Opening)>> {
        match self.core().ns.lookup(dir, name) {
            Ok(node) if node.ino == ino => {}
            _ => return Ok(None),
        }
        let open = pb::Open { ino: ino.0, dir: dir.0, write: true, truncate: false };
        let (answer, opening) = self.open_write(session, &open)?;
        Ok(Some((Answer { dir: self.core().dir_attr(dir), ..answer }, opening)))
    }

    pub(super) fn discard_staged(&self, ino: Ino) {
        if let Err(error) = self.store.remove_staged(ino) {
            tracing::warn!("cannot remove staged file {ino}: {error}");
        }
    }

    /// Open a regular file.
    pub fn open(&self, session: SessionId, q: &pb::Open) -> FsResult<(Answer, Opening)> {
        if q.write {
            if !q.truncate {
                self.wait_for_room();
            }
            self.open_write(session, q)
        } else {
            self.open_read(session, q)
        }
    }

    /// The content that an open would need and that is not on this disk, or is better fetched; `None` when it can go ahead (or fails by itself).
    pub fn absent(&self, ino: Ino, dir: Ino) -> FsResult<Option<Wanted>> {
        let Some(wanted) = self.recorded(ino, dir)? else { return Ok(None) };
        let is_here = self.holds(wanted.content, wanted.size)? && !self.is_better_fetched(wanted.content, wanted.size);
        Ok((!is_here).then_some(wanted))
    }

    /// The content that who reads this file gets; `None` of one that is being written, or is in the catalog, or is no file.
    pub fn recorded(&self, ino: Ino, dir: Ino) -> FsResult<Option<Wanted>> {
        let data = {
            let mut core = self.core();
            let node = core.ns.node_to_read(ino, dir)?;
            // One that has just been sealed is still in the table for a moment.
            if core.staged.get(node.ino).is_some() && !core.is_renumbered(node.ino) && self.store.is_staged(node.ino)? {
                return Ok(None);
            }
            match node.regular() {
                Ok(data) => data.clone(),
                Err(_) => return Ok(None),
            }
        };
        Ok(match data {
            Data::Stored { content, size, pieces } => Some(Wanted { content, size, pieces }),
            _ => None,
        })
    }

    /// The content of a sealed file above the inline limit.
    #[cfg(test)]
    pub fn stored(&self, ino: Ino) -> FsResult<Option<Wanted>> {
        let mut core = self.core();
        let at = core.ns.locate(ino, Ino::ROOT)?;
        Ok(match core.ns.node(&at)?.regular()? {
            Data::Stored { content, size, pieces } => Some(Wanted { content: *content, size: *size, pieces: *pieces }),
            _ => None,
        })
    }

    fn open_read(&self, session: SessionId, q: &pb::Open) -> FsResult<(Answer, Opening)> {
        let mut core = self.core();
        let node = core.ns.node_to_read(Ino(q.ino), Ino(q.dir))?;
        let data = node.regular()?.clone();
        // Of a file that was replaced a moment ago nothing is fetched, and what is missing is no damage.
        let is_gone = node.nlink == 0;
        let or_gone = |error| if is_gone { Errno::ESTALE.into() } else { error };
        let answer = Answer { seq: core.ns.seq(), node: Some(core.attr(&self.store, &node)), ..Answer::default() };
        if let Some(staged) = core.staged.get(node.ino)
            && !core.is_renumbered(node.ino)
            && let Some(file) = self.store.open_staged(node.ino, false)?
        {
            let shared = staged.session != Some(session);
            let written = shared && staged.writers > 0;
            return Ok((Answer { shared, written, ..answer }, Opening::File { handle: 0, file }));
        }
        Ok((
            answer,
            match data {
                Data::Inline { blob, .. } => Opening::Inline(core.ns.attachment(blob).map_err(or_gone)?),
                Data::Stored { content, size, .. } => {
                    drop(core);
                    let opened = self.open_content(content, size);
                    let file = opened.map_err(|error| or_gone(missing(node.ino, error)))?;
                    Opening::File { handle: 0, file }
                }
                _ => Opening::Inline(Bytes::new()),
            },
        ))
    }

    fn open_write(&self, session: SessionId, q: &pb::Open) -> FsResult<(Answer, Opening)> {
        self.check_writable()?;
        let handle = self.new_handle();
        let mut core = self.core();
        let mut is_due = true;
        loop {
            asker::check_asked()?;
            let at = core.ns.locate(Ino(q.ino), Ino(q.dir))?;
            let at = core.ns.settle(at)?;
            let node = core.ns.node(&at)?;
            let data = node.regular()?.clone();
            let ino = node.ino;
            if core.is_renumbered(ino) {
                let why = "a file that had its number is open for writing on this host; try again when that is closed";
                return Err(FsError::new(Errno::EBUSY, why));
            }
            match core.staged.get(ino).map(|s| s.work) {
                Some(Work::Making) => {
                    self.idle.wait(&mut core);
                    continue;
                }
                Some(_) if std::mem::take(&mut is_due) && core.is_overdue(ino) => {
                    drop(core);
                    self.seal_overdue(ino);
                    core = self.core();
                    continue;
                }
                Some(_) => {
                    let file = self.store.open_staged(ino, true)?.ok_or(Errno::ESTALE)?;
                    return self.opened(core, session, handle, &node, file, q.truncate);
                }
                None => {}
            }
            let base = Some(core.ns.content_dots(&at)?);
            core.staged.insert(ino, Staged { dir: node.dir, base, work: Work::Making, ..Staged::default() });
            let inline = match &data {
                Data::Inline { blob, .. } if !q.truncate => core.ns.attachment(*blob).map(Some),
                _ => Ok(None),
            };
            drop(core);
            let made = inline.and_then(|inline| self.make_staged(ino, &data, inline, q.truncate, node.mtime_ns));
            #[cfg(test)]
            tests::meanwhile();
            core = self.core();
            self.idle.notify_all();
            // As it is now: its attributes may have been changed meanwhile, and who asks now must not be told what they were.
            let now = core.now_of(ino, node.dir).ok();
            // The same content may be another version by now, and what is written in its place must replace that one.
            match (made, now.filter(|(now, _)| now.regular().is_ok())) {
                (Ok((file, made)), Some((now, versions)))
                    if now.regular().is_ok_and(|regular| *regular == data) && core.staged.is_from(ino, &versions) =>
                {
                    if let Some(staged) = core.staged.get_mut(ino) {
                        staged.work = Work::None;
                        staged.made = made;
                        staged.unwritten = !q.truncate;
                    }
                    return self.opened(core, session, handle, &now, file, false);
                }
                (Ok(_), Some(_)) => {
                    // Another version has come from elsewhere meanwhile: once more with that.
                    core.staged.remove(ino);
                    self.discard_staged(ino);
                }
                (Ok(_), None) => {
                    core.staged.remove(ino);
                    self.discard_staged(ino);
                    return Err(Errno::ESTALE.into());
                }
                (Err(error), _) => {
                    core.staged.remove(ino);
                    return Err(error);
                }
            }
        }
    }

    /// Make the staged file of a writer, with the content and time it has so far. Also its stamp, unless it was
    /// emptied.
    fn make_staged(
        &self,
        ino: Ino,
        data: &Data,
        inline: Option<Bytes>,
        truncate: bool,
        mtime_ns: i64,
    ) -> FsResult<(File, Option<Stamp>)> {
        let file = match (data, inline) {
            (_, Some(bytes)) => self.store.stage_bytes(ino, &bytes, Some(mtime_ns))?,
            (Data::Stored { content, size, .. }, None) if !truncate => {
                let copied = self
                    .check_content(*content, *size)
                    .and_then(|()| self.store.stage_copy(ino, *content, *size, *size, Some(mtime_ns)));
                copied.map_err(|error| missing(ino, error))?
            }
            _ if truncate => return Ok((self.store.stage_new(ino)?, None)),
            _ => self.store.stage_bytes(ino, &[], Some(mtime_ns))?,
        };
        Ok((file, self.store.staged_stat(ino)?.map(|stat| stat.written)))
    }

    fn opened(
        &self,
        mut core: parking_lot::MutexGuard<'_, Core>,
        session: SessionId,
        handle: u64,
        node: &Node,
        file: File,
        truncate: bool,
    ) -> FsResult<(Answer, Opening)> {
        if truncate {
            file.set_len(0)?;
            if let Some(staged) = core.staged.get_mut(node.ino) {
                staged.unwritten = false;
            }
        }
        core.staged.open(handle, session, node.ino);
        let shared = core.staged.get(node.ino).is_some_and(|staged| staged.session.is_none());
        let node = Some(core.attr(&self.store, node));
        let answer = Answer { seq: core.ns.seq(), node, shared, ..Answer::default() };
        Ok((answer, Opening::File { handle, file }))
    }

    /// Close a handle. The last writer's Close seals the file: small ones at once, others in the background. `unwritten`:
    /// nothing was changed through this handle.
    pub fn close(&self, session: SessionId, handle: u64, unwritten: bool) -> FsResult<Answer> {
        let closed = self.core().staged.close(session, handle, unwritten);
        let Some(Closed { ino, dir, is_last, shared }) = closed else { return Ok(Answer::default()) };
        if is_last {
            self.seal(ino, Size::Small);
        }
        let mut core = self.core();
        if shared && !is_last && !unwritten {
            self.tell_others(&mut core, session, ino);
        }
        let mut answer = Answer { seq: core.ns.seq(), shared, ..Answer::default() };
        if dir.0 != 0
            && let Ok(at) = core.ns.locate(ino, dir)
            && let Ok(node) = core.ns.node(&at)
        {
            answer.node = Some(core.attr(&self.store, &node));
        }
        Ok(answer)
    }

    /// A session has synced what it wrote to a file that another one may have open to be written, too.
    pub fn synced(&self, session: SessionId, ino: Ino) {
        let mut core = self.core();
        if core.staged.get(ino).is_some_and(|staged| staged.session.is_none() && staged.writers > 1) {
            self.tell_others(&mut core, session, ino);
        }
    }

    /// Of a file that several have open to be written one has written. The others go by the size that they were told: nothing is recorded
    /// before all have closed it.
    fn tell_others(&self, core: &mut Core, session: SessionId, ino: Ino) {
        core.ns.resized();
        let changed = pb::Changed { inos: vec![ino.0], ..pb::Changed::default() };
        self.events.send(Some(session), core.ns.seq(), &[changed]);
    }

    /// A sync through this write handle has failed.
    pub fn doubt(&self, session: SessionId, handle: u64) {
        let ino = self.core().staged.file_of(session, handle);
        if let Some(ino) = ino {
            self.store.doubt_staged(ino);
        }
    }

    /// A session has ended: close what it left open.
    pub fn end_session(&self, session: SessionId) {
        let handles = self.core().staged.handles_of(session);
        for handle in handles {
            if let Err(error) = self.close(session, handle, false) {
                tracing::warn!("closing a file of a vanished session: {error}");
            }
        }
    }

    /// SetAttr. A change of size is an open, a truncation and a close.
    pub fn set_attr(&self, session: SessionId, q: &pb::SetAttr) -> FsResult<Answer> {
        let Some(size) = q.size else { return self.set_attr_only(session, q) };
        if size > FILE_MAX_BYTES {
            return Err(Errno::EFBIG.into());
        }
        let open = pb::Open { ino: q.ino, dir: q.dir, write: true, truncate: size == 0 };
        let (_, opening) = self.open_write(session, &open)?;
        let Opening::File { handle, file } = opening else { return Err(Errno::EIO.into()) };
        let truncated = file.set_len(size).map_err(FsError::from);
        drop(file);
        self.core().ns.resized();
        let rest = pb::SetAttr { size: None, ..*q };
        let edited = match truncated {
            Ok(())
                if rest.mode.is_some()
                    || rest.uid.is_some()
                    || rest.gid.is_some()
                    || rest.mtime.is_some()
                    || rest.atime.is_some()
                    || rest.mtime_now
                    || rest.atime_now =>
            {
                self.set_attr_only(session, &rest).map(drop)
            }
            other => other,
        };
        let closed = self.close(session, handle, false);
        edited?;
        match closed {
            Ok(answer) if answer.node.is_none() => Err(Errno::ESTALE.into()), // it has lost its name meanwhile
            closed => closed,
        }
    }

    /// Fsync: of one node, or of everything.
    pub fn fsync(&self, q: &pb::Fsync) -> FsResult<()> {
        let ino = Ino(q.ino);
        if q.sync_failed {
            self.store.doubt_staged(ino);
        }
        // The kernel says of a failed sync once. Who asks again is not to be told that all is well.
        if self.store.is_doubtful(ino)? {
            return Err(FsError::new(
                Errno::EIO,
                format!(
                    "a sync of file {ino} has failed: what was written to it may be in memory only. When it is closed a \
                    copy is made; look at dmesg"
                ),
            ));
        }
        // One whose names are all gone is staged no more, and its handle is known still.
        let is_foreign = |core: &Core| core.staged.get(ino).is_none() && !core.staged.has_handle(q.handle);
        if q.writes && is_foreign(&self.core()) {
            return Err(FsError::new(
                Errno::EIO,
                format!("file {ino} is being written on a disk that is away: this one cannot say what of it is safe"),
            ));
        }
        if ino.0 == 0 {
            self.store.barrier()?;
        } else {
            self.sync_data_of(ino, Ino(q.dir), q.handle != 0)?;
        }
        self.sync_records()
    }

    /// Everything recorded so far is on stable storage afterwards.
    pub(super) fn sync_records(&self) -> FsResult<()> {
        self.journal.sync().map_err(|error| {
            let errno = FsError::from(error).errno;
            FsError::new(errno, "cannot make the journal durable")
        })
    }

    fn sync_data_of(&self, ino: Ino, dir: Ino, is_synced: bool) -> FsResult<()> {
        self.sync_staged_of(ino, is_synced)?;
        // What is recorded too: the file may have been sealed meanwhile, and a copy nobody writes to goes as it came.
        let content = {
            let mut core = self.core();
            let Ok(at) = core.ns.locate(ino, dir) else { return Ok(()) };
            match core.ns.node(&at)?.kind {
                crate::namespace::Kind::File(Data::Stored { content, .. }) => content,
                _ => return Ok(()),
            }
        };
        self.store.sync_content(content)
    }

    fn sync_staged_of(&self, ino: Ino, is_synced: bool) -> FsResult<()> {
        self.give_name_back(ino)?; // a start removes what has none
        let mut core = self.core();
        let Some(staged) = core.staged.get_mut(ino) else { return Ok(()) };
        staged.promised = true;
        let (entry, name_synced) = (staged.entry, staged.name_synced);
        // Its mark says so, which an fdatasync(2) does not care for.
        let is_unnoted = core.staged.is_unnoted(ino);
        drop(core);
        if !is_synced || is_unnoted {
            self.store.sync_staged_data(ino)?;
        }
        // An older one may say that it has no name, or that it replaces what it does not.
        let was_noted = self.store.sync_note(ino)?;
        if self.store.copy_was_synced(ino)? || was_noted || !name_synced {
            self.store.sync_staging_dir()?;
            // Only now: who finds it set does not wait for us.
            if let Some(staged) = self.core().staged.same(ino, entry) {
                staged.name_synced = true;
            }
        }
        Ok(())
    }

    /// Adopt: a frontend kept its descriptor over a restart of this process. ESTALE when the file was sealed or removed
    /// in between (its last name is gone): what is written to that descriptor from now on is nobody else's.
    pub fn adopt(&self, session: SessionId, q: &pb::Adopt, fd: OwnedFd) -> FsResult<(Answer, u64)> {
        let ino = Ino(q.ino);
        let theirs = File::from(fd).metadata()?;
        let mut core = self.core();
        if core.staged.get(ino).is_none() {
            return Err(FsError::new(Errno::ESTALE, "the file was sealed or removed"));
        }
        let ours = self.store.open_staged(ino, false)?.ok_or(Errno::ESTALE)?.metadata()?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(FsError::new(Errno::ESTALE, "the descriptor is not that of the staged file"));
        }
        if q.sync_failed {
            self.store.doubt_staged(ino);
        }
        let handle = self.new_handle();
        core.staged.open(handle, session, ino);
        let mut answer = Answer { seq: core.ns.seq(), ..Answer::default() };
        if let Ok(at) = core.ns.locate(ino, Ino(q.dir))
            && let Ok(node) = core.ns.node(&at)
        {
            answer.node = Some(core.attr(&self.store, &node));
        }
        Ok((answer, handle))
    }
}

impl Core {
    /// A node as it is now, and the versions of its content.
    fn now_of(&mut self, ino: Ino, dir: Ino) -> FsResult<(Node, Vec<Dot>)> {
        let at = self.ns.locate(ino, dir)?;
        Ok((self.ns.node(&at)?, self.ns.content_dots(&at)?))
    }
}

/// A content that is not on this disk is no missing name: whoever opens the file must not be told that it does not exist.
fn missing(ino: Ino, error: FsError) -> FsError {
    match error.errno {
        Errno::ENOENT => {
            FsError::new(Errno::EIO, format!("the content of file {ino} is missing on this disk: {error}"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::engine::Offer;
    use crate::engine::recover::tests::fresh;

    type Act = Box<dyn FnOnce()>;

    thread_local! {
        /// To be done while a file is made for a writer.
        static MEANWHILE: RefCell<Option<Act>> = const { RefCell::new(None) };
    }

    pub(super) fn meanwhile() {
        if let Some(act) = MEANWHILE.take() {
            act();
        }
    }

    fn take(from: &Engine, by: &Engine) {
        let mut pack = Vec::new();
        from.commit().unwrap();
        let offer = Offer { state: from.committed(), base: None };
        from.export(&offer, &mut pack).unwrap();
        by.join(&mut &pack[..], offer.state.commit, None).unwrap();
    }

    fn write(engine: &Engine, opening: Opening, bytes: &[u8]) {
        let Opening::File { handle, file } = opening else { panic!() };
        file.write_all_at(bytes, 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
    }

    fn names(engine: &Engine) -> usize {
        let listed = engine.read_dir(&pb::ReadDir { dir: 1, limit: 10, ..Default::default() }).unwrap();
        listed.1.entries.len()
    }

    /// The same content with another dot is another version, and so is one that is shown beside it.
    #[test]
    fn what_is_written_replaces_the_version_that_came_while_its_file_was_made() {
        let (_dir, one) = fresh();
        let (_dir2, two) = fresh();
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = one.engine.create(1, false, &q).unwrap();
        write(&one.engine, opening, b"before");
        let ino = answer.node.unwrap().ino;
        take(&one.engine, &two.engine);
        let open = pb::Open { ino, dir: 1, write: true, truncate: false };
        let opening = two.engine.open(1, &open).unwrap().1;
        write(&two.engine, opening, b"before");
        let (from, by) = (two.engine.clone(), one.engine.clone());
        MEANWHILE.set(Some(Box::new(move || take(&from, &by))));
        let opening = one.engine.open(1, &open).unwrap().1;
        assert!(MEANWHILE.take().is_none());
        write(&one.engine, opening, b"after");
        assert_eq!(names(&one.engine), 1, "there is a conflict copy");
        take(&one.engine, &two.engine);
        assert_eq!(names(&two.engine), 1);
        one.stop().unwrap();
        two.stop().unwrap();
    }
}
