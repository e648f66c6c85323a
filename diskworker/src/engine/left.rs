//! What the last life left in `staging/`: each such file is put into the table of staged files, or removed when its name is gone. A file that
//! nobody else has changed since it was opened is known by its record; of another one there is a note (`noted.rs`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::FileExt;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Data, Dot, Element, Key};
use nix::errno::Errno;

use super::lost::{Lost, is_open, is_stump};
use super::noted::Note;
use super::staged::{Staged, StagedTable};
use crate::content::{ContentStore, Copied, Life};
use crate::namespace::{Located, Namespace, Node, Taken};
use crate::{os, view};

/// The directories that have files.
type Homes = HashMap<Ino, BTreeSet<Ino>>;

/// Put every staged file into the table, or remove it when its name is gone. `journaled` are the directories of those that the journal
/// mentions.
pub(super) fn find_staged(
    ns: &mut Namespace,
    store: &ContentStore,
    journaled: HashMap<Ino, Ino>,
    lost: &Lost,
) -> anyhow::Result<StagedTable> {
    let inos = store.staged()?;
    let mut table = StagedTable::default();
    let homes = homes(ns, &inos, journaled)?;
    for ino in inos {
        let noted = store.noted(ino).unwrap_or_default();
        let mut note = Note::from_bytes(ino, &noted);
        match locate(ns, ino, note.as_ref(), homes.get(&ino)) {
            Ok(place) => {
                if let Some(note) = &mut note {
                    found_again(ns, note, &place)?;
                }
                let copied = copied(ns, store, ino, &place.at, lost);
                match copied {
                    Copied::Whole => {}
                    Copied::Lacking => {
                        tracing::warn!(
                            "file {ino}: what was written before the machine went down did not reach the disk"
                        );
                        store.remove_staged(ino)?;
                        continue;
                    }
                    Copied::Changed => {
                        tracing::warn!(
                            "file {ino}: not all of it reached the disk before the machine went down; the version before it is kept too"
                        );
                        store.forget_noted(ino);
                        store.mark_met(ino);
                    }
                }
                let is_whole = copied == Copied::Whole;
                let noted = if is_whole && note.is_some() { noted } else { Vec::new() };
                let staged = Staged { noted, ..recorded(store, ino, place, is_whole) };
                // Of what lacks something no more is known than whose it is.
                let note = note.map(|note| if is_whole { note } else { note.of_nothing() });
                insert(&mut table, store, ino, staged, note);
            }
            Err(error) if is_gone(error.errno) => match note {
                // Others have taken it. It has its name again when something was written, or is.
                Some(note) if note.taken.is_some() => insert_taken(&mut table, ns, store, ino, (note, noted))?,
                _ => {
                    tracing::info!("staged file {ino} has no name any more: removed");
                    store.remove_staged(ino)?;
                }
            },
            // A catalog that cannot be read is no reason to throw away what was written.
            Err(error) => anyhow::bail!("looking for the name of the staged file {ino}: {error}"),
        }
    }
    Ok(table)
}

/// A file without a name, of which the note says that others have taken it.
fn insert_taken(
    table: &mut StagedTable,
    ns: &mut Namespace,
    store: &ContentStore,
    ino: Ino,
    (note, noted): (Note, Vec<u8>),
) -> FsResult<()> {
    let Some(taken) = &note.taken else { return Ok(()) };
    let copied = taken_copied(ns, store, ino, &note, taken);
    let staged = Staged { dir: note.dir, promised: true, ..Staged::default() };
    if copied == Copied::Whole {
        insert(table, store, ino, Staged { noted, ..staged }, Some(note));
        return Ok(());
    }
    // Nothing of it was fsynced, or all of the copy were there.
    let is_made = note.made.is_some_and(|made| is_unwritten(store, ino, |mtime_ns, size| (mtime_ns, size) == made));
    if copied == Copied::Lacking || is_made {
        tracing::warn!("file {ino}, which others have removed: what was written before the machine went down is lost");
        return store.remove_staged(ino);
    }
    tracing::warn!(
        "file {ino}, which others have removed: not all of it reached the disk before the machine went down; it is put beside what it was"
    );
    // Else zeros would come in the place of what it was.
    let is_back = ns.put_back(taken).inspect_err(|error| tracing::error!("file {ino} has no name: {error}")).is_ok();
    store.forget_noted(ino);
    store.mark_met(ino);
    let staged = Staged { dir: taken.dir, ..staged };
    let taken = note.taken.clone().filter(|_| !is_back);
    insert(table, store, ino, staged, Some(Note { taken, ..note.of_nothing() }));
    Ok(())
}

/// It has a name, so nobody has taken it; or it had it back, and the worker ended before that was written down. What holds its place then
/// is what its writers started from.
fn found_again(ns: &mut Namespace, note: &mut Note, place: &Place) -> FsResult<()> {
    let Some(taken) = note.taken.take() else { return Ok(()) };
    if let ([only], Some(Element { body: Body::Content { data, .. }, .. })) =
        (&place.versions[..], ns.content_at(&place.at)?)
        && taken.versions().any(|(dot, was)| *was == data && note.base.contains(&dot))
        && !note.base.contains(only)
    {
        note.base.push(*only);
    }
    Ok(())
}

/// The directories that may have these files, by the journal and the last commit: one walk finds them all.
fn homes(ns: &Namespace, inos: &[Ino], journaled: HashMap<Ino, Ino>) -> anyhow::Result<Homes> {
    let wanted: HashSet<Ino> = inos.iter().copied().collect();
    let mut homes = Homes::new();
    if wanted.is_empty() {
        return Ok(homes);
    }
    let mut visit = |key: &Key, elements: &[Element]| {
        if let Key::Entry(dir, name) = key
            && !name.is_header()
        {
            let written = elements.iter().filter(|e| matches!(e.body, Body::Content { .. }));
            let inos = view::view(elements).into_iter().map(|shown| shown.ino);
            for ino in inos.chain(written.filter_map(|element| element.body.ino())).filter(|ino| wanted.contains(ino)) {
                homes.entry(ino).or_default().insert(*dir);
            }
        }
        Ok(())
    };
    match ns.catalog().clone().for_each(&mut visit) {
        Err(error) if wanted.iter().all(|ino| journaled.contains_key(ino)) => {
            tracing::warn!("whether another file has the number of one that was being written cannot be told: {error}");
        }
        walked => walked?,
    }
    for (ino, dir) in journaled.into_iter().filter(|(ino, _)| wanted.contains(ino)) {
        homes.entry(ino).or_default().insert(dir);
    }
    Ok(homes)
}

/// Where a staged file's name is.
struct Place {
    at: Located,
    node: Node,
    versions: Vec<Dot>,
    /// Files of two directories have its number, and nothing tells whose it is.
    is_double: bool,
}

impl Place {
    fn of(ns: &mut Namespace, at: Located, is_double: bool) -> FsResult<Self> {
        Ok(Self { node: ns.node(&at)?, versions: ns.content_dots(&at)?, at, is_double })
    }
}

fn locate(ns: &mut Namespace, ino: Ino, note: Option<&Note>, homes: Option<&BTreeSet<Ino>>) -> FsResult<Place> {
    if let Some(note) = note {
        let found = match note.number {
            Some(number) => ns.locate(number, note.dir),
            None => ns.locate_written(ino, note.dir, &note.base),
        };
        match found {
            Err(error) if is_gone(error.errno) && note.taken.is_none() => {}
            found => return Place::of(ns, found?, false),
        }
    }
    let mut found: Vec<Located> = Vec::new();
    let dirs = || homes.into_iter().flatten().copied();
    // Where nothing shows it something may have come under its name that hides it.
    for (dir, may_be_hidden) in dirs().map(|dir| (dir, false)).chain(dirs().map(|dir| (dir, true))) {
        if may_be_hidden && !found.is_empty() {
            break;
        }
        let unhidden = if may_be_hidden { ns.unhide(ino, dir).map(drop) } else { Ok(()) };
        match unhidden.and_then(|()| ns.shows(dir, ino)) {
            Ok(true) => found.push(ns.locate(ino, dir)?),
            Ok(false) => {}
            Err(error) if is_gone(error.errno) => {}
            Err(error) => return Err(error),
        }
    }
    // A file with names in two directories is one.
    let is_double = found.len() > 1 && found.iter().any(|at| matches!(at, Located::File { .. }));
    let at = found.into_iter().next().ok_or(Errno::ENOENT)?;
    Place::of(ns, at, is_double)
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESTALE)
}

/// A file of which there is no note.
fn recorded(store: &ContentStore, ino: Ino, place: Place, is_whole: bool) -> Staged {
    let Place { node, versions, is_double, .. } = place;
    let is_known = !is_double && !store.is_met(ino);
    // What its writers started from is not known any more. It replaces all there is now, or, where others have changed it
    // meanwhile, nothing.
    let base = Some(if is_known { versions } else { Vec::new() });
    let mut staged = Staged { dir: node.dir, base, promised: true, ..Staged::default() };
    let Ok(data) = node.regular() else { return staged };
    if is_whole {
        staged.found = Some((data.clone(), node.mtime_ns));
    }
    if is_whole && is_known {
        let is_recorded = |mtime_ns: i64, size: u64| match data {
            Data::Empty => size == 0,
            Data::Inline { size: was, .. } => (mtime_ns, size) == (node.mtime_ns, u64::from(*was)),
            // Else the staged file may be all there is of it.
            Data::Stored { content, size: was, .. } => {
                (mtime_ns, size) == (node.mtime_ns, *was)
                    && matches!(store.has(*content), Ok(Some(held)) if held == size)
            }
            _ => false,
        };
        if is_open(store, ino) && is_unwritten(store, ino, is_recorded) {
            let stamp = store.staged_stat(ino).ok().flatten().map(|stat| stat.written);
            (staged.made, staged.recorded, staged.unwritten) = (stamp, stamp, stamp.is_some());
        }
    }
    staged
}

/// Put a file into the table, with what its note says.
fn insert(table: &mut StagedTable, store: &ContentStore, ino: Ino, mut staged: Staged, note: Option<Note>) {
    let Some(note) = note else { return table.insert(ino, staged) };
    let is = |state: Option<(i64, u64)>| {
        let is_same = state.is_some_and(|state| is_unwritten(store, ino, |mtime_ns, size| (mtime_ns, size) == state));
        store.staged_stat(ino).ok().flatten().filter(|_| is_same).map(|stat| stat.written)
    };
    // Where nobody has it open the machine may have gone down, and the times on the disk be older than the bytes: it is not dropped but for
    // a removal. Of what was fsynced after that it would have its name again.
    let made = is(note.made).filter(|_| note.taken.is_some() || is_open(store, ino));
    (staged.made, staged.recorded, staged.unwritten) = (made, is(note.recorded), made.is_some());
    staged.base = Some(note.base);
    (staged.number, staged.taken) = (note.number, note.taken);
    table.insert(ino, staged);
    table.has_met(ino);
}

/// Whether a file has the time and the length of a state, and no write can have left it those: a write makes both times equal, and where
/// the time was set after one there is a mark.
fn is_unwritten(store: &ContentStore, ino: Ino, is_state: impl Fn(i64, u64) -> bool) -> bool {
    let Ok(Some(stat)) = store.staged_stat(ino) else { return false };
    let is_late = stat.mtime_ns == stat.ctime_ns && stat.size > 0;
    is_state(stat.mtime_ns, stat.size) && !is_late && !store.is_marked_written(ino)
}

/// What a staging file has of what it is a copy of, or of what was recorded of it before.
fn copied(ns: &mut Namespace, store: &ContentStore, ino: Ino, at: &Located, lost: &Lost) -> Copied {
    if !store.is_unsynced_copy(ino) {
        if lost.has_stump(ino) {
            return Copied::Changed;
        }
        return match ns.content_at(at) {
            Ok(Some(recorded)) if is_stump(store, ino, &recorded) => Copied::Changed,
            _ => Copied::Whole,
        };
    }
    unsynced_copied(store, ino, || {
        if ns.content_dots(at)?.len() > 1 {
            return Ok(Copied::Changed); // of one of them
        }
        let data = ns.node(at)?.regular()?.clone();
        compare(ns, store, ino, &data)
    })
}

/// The same of a file that others have taken.
fn taken_copied(ns: &Namespace, store: &ContentStore, ino: Ino, note: &Note, taken: &Taken) -> Copied {
    if !store.is_unsynced_copy(ino) {
        return Copied::Whole;
    }
    unsynced_copied(store, ino, || {
        let versions: Vec<_> = taken.versions().collect();
        match versions[..] {
            [(dot, data)] if note.base.contains(&dot) => compare(ns, store, ino, data),
            _ => Ok(Copied::Changed), // of what is not known any more
        }
    })
}

fn compare(ns: &Namespace, store: &ContentStore, ino: Ino, data: &Data) -> FsResult<Copied> {
    match data {
        Data::Inline { blob, .. } => {
            let bytes = ns.attachment(*blob)?;
            store.compare_copy(ino, bytes.len() as u64, |into, at| {
                into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]);
                Ok(())
            })
        }
        Data::Stored { content, size, .. } => {
            let whole = store.open_content(*content, *size)?;
            let read = |into: &mut [u8], at| whole.read_exact_at(into, at).map_err(|error| os::errno(&error));
            store.compare_copy(ino, *size, read)
        }
        _ => Ok(Copied::Whole),
    }
}

/// What a copy has of its original that is not known to be on stable storage, to be compared by `look`.
fn unsynced_copied(store: &ContentStore, ino: Ino, look: impl FnOnce() -> FsResult<Copied>) -> Copied {
    let life = store.life_of_copy(ino);
    if life == Life::This || is_open(store, ino) {
        return Copied::Whole;
    }
    match look() {
        // Perhaps only the worker ended, and somebody made it shorter before.
        Ok(Copied::Lacking) if life == Life::Unknown => Copied::Changed,
        // Where the original cannot be read both are kept.
        found => found.unwrap_or(Copied::Changed),
    }
}
