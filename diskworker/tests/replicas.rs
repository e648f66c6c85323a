//! Three disks whose users do anything at any time, also with files open, and whose states meet now and then: no text that was
//! closed is lost unless somebody who saw it replaced or removed it, and each keeps the owner of its file. In the end all disks show the
//! same, and all of it can be removed.
//!
//! A failing run prints its seed; `REPLICAS_SEED=n` replays it alone, `REPLICAS_SEEDS=n` tries more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::{Alone, Offer, Opening};
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Disk, Posix, SESSION};

const DISKS: usize = 3;
const STEPS: usize = 70;
const SEEDS: u64 = 25;
/// Whose the files are that the first disk makes; those of the others are the next ones'.
const OWNER: u32 = 77;
/// What a file or directory gets that carries its owner.
const MARK: &str = "user.owner";
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A directory, and a name in it.
type Place = (u64, String);

/// What is shown at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    at: Place,
    ino: u64,
    uid: u32,
    /// `None`: it is a directory.
    text: Option<String>,
}

/// An open file.
struct Open {
    disk: usize,
    ino: u64,
    handle: u64,
    file: File,
    /// What it showed when it was opened; where it was made, if it was.
    before: Option<String>,
    made: Option<Place>,
    uid: u32,
    text: String,
}

struct World {
    disks: Vec<Disk>,
    /// Whether there are directories but the root.
    has_dirs: bool,
    /// Bytes of a text at least: it may have a file of its own on each disk.
    length: usize,
    opens: Vec<Open>,
    /// Texts that must be there, and the inodes they were written to.
    alive: BTreeMap<String, u64>,
    /// Whose each text is. Nobody gives a file to another.
    owners: BTreeMap<String, u32>,
    /// Inodes of which a name was removed or replaced, and where: what is open of them there may go.
    removed: BTreeSet<(usize, u64)>,
    texts: usize,
    random: u64,
    told: Vec<String>,
}

impl World {
    fn new(seed: u64, has_dirs: bool, length: usize) -> Self {
        let disks = (0..DISKS).map(|_| Disk::new()).collect();
        let (alive, owners, removed) = Default::default();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { disks, has_dirs, length, opens: Vec::new(), alive, owners, removed, texts: 0, random, told: Vec::new() }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }

    fn text(&mut self, disk: usize) -> String {
        self.texts += 1;
        format!("{:<1$}", format!("text {} of disk {disk}", self.texts), self.length)
    }

    /// All that a disk shows, by path.
    fn shown(&self, disk: usize) -> BTreeMap<String, Seen> {
        let engine = self.disks[disk].engine();
        let mut shown = BTreeMap::new();
        let mut dirs = vec![(Ino::ROOT.0, Vec::<String>::new())];
        let mut met = BTreeSet::from([Ino::ROOT.0]);
        while let Some((dir, path)) = dirs.pop() {
            for (name, attr) in engine.list(dir).unwrap() {
                let name = String::from_utf8(name).unwrap();
                let path: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
                let is_dir = attr.mode & 0o170_000 == 0o040_000;
                if is_dir {
                    assert!(met.insert(attr.ino), "{path:?} is a directory in two places");
                    dirs.push((attr.ino, path.clone()));
                }
                let bytes: Vec<&[u8]> = path.iter().map(String::as_bytes).collect();
                let text = (!is_dir).then(|| String::from_utf8(engine.read(&bytes).unwrap()).unwrap());
                shown.insert(path.join("/"), Seen { at: (dir, name), ino: attr.ino, uid: attr.uid, text });
            }
        }
        shown
    }

    /// A file that is there, if any.
    fn pick(&mut self, disk: usize) -> Option<(Seen, String)> {
        let files = self.shown(disk).into_values().filter_map(|seen| Some((seen.text.clone()?, seen)));
        let files: Vec<_> = files.collect();
        let at = self.below(files.len().max(1));
        files.into_iter().nth(at).map(|(text, seen)| (seen, text))
    }

    /// A directory that is there and not the root, if any.
    fn pick_dir(&mut self, disk: usize) -> Option<Seen> {
        let mut dirs: Vec<Seen> = self.shown(disk).into_values().filter(|seen| seen.text.is_none()).collect();
        if self.below(4) == 0 && dirs.iter().any(|seen| seen.ino == Ino::LOST_FOUND.0) {
            dirs.retain(|seen| seen.ino == Ino::LOST_FOUND.0);
        }
        let at = self.below(dirs.len().max(1));
        dirs.into_iter().nth(at)
    }

    /// Where something may be put.
    fn place(&mut self, disk: usize) -> Place {
        let dir = if self.has_dirs && self.below(2) == 0 { self.pick_dir(disk) } else { None };
        let name = if self.has_dirs && self.below(16) == 0 { "lost+found" } else { NAMES[self.below(NAMES.len())] };
        (dir.map_or(Ino::ROOT.0, |dir| dir.ino), name.to_owned())
    }

    /// What is at a place, if anything.
    fn at(&self, disk: usize, place: &Place) -> Option<Seen> {
        self.shown(disk).into_values().find(|seen| seen.at == *place)
    }

    fn is_open(&self, disk: usize, ino: u64) -> bool {
        self.opens.iter().any(|open| open.disk == disk && open.ino == ino)
    }

    /// Begin to write: a new file, or one that is there.
    fn open(&mut self, disk: usize) {
        let text = self.text(disk);
        let place = self.place(disk);
        let is_new = self.at(disk, &place).is_none();
        let engine = self.disks[disk].engine().clone();
        let (ino, uid, before, opened) = if is_new {
            let (dir, name) = place.clone();
            let uid = OWNER + disk as u32;
            let q = pb::Create { dir, name: name.into(), mode: 0o644, uid, gid: uid, ino: 0 };
            let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
            let ino = answer.node.unwrap().ino;
            self.set_xattr(disk, (ino, dir), MARK, uid);
            (ino, uid, None, opening)
        } else {
            let Some((seen, before)) = self.pick(disk) else { return };
            if self.is_open(disk, seen.ino) {
                return;
            }
            let q = pb::Open { ino: seen.ino, dir: seen.at.0, write: true, truncate: true };
            (seen.ino, seen.uid, Some(before), engine.open(SESSION, &q).unwrap().1)
        };
        let Opening::File { handle, file } = opened else { panic!("a writer gets a descriptor") };
        file.write_all_at(text.as_bytes(), 0).unwrap();
        self.told
            .push(format!("{disk}: open {ino:x} ({before:?}, new: {is_new} {place:x?}) for {:?}", text.trim_end()));
        let made = is_new.then_some(place);
        self.opens.push(Open { disk, ino, handle, file, before, made, uid, text });
    }

    fn close(&mut self, at: usize) {
        let open = self.opens.swap_remove(at);
        drop(open.file);
        self.disks[open.disk].engine().close(SESSION, open.handle, false).unwrap();
        self.told.push(format!("{}: close {:?}", open.disk, open.text));
        let is_removed = self.removed.contains(&(open.disk, open.ino));
        self.written((open.ino, open.uid), open.before, open.text, is_removed);
    }

    fn set_xattr(&self, disk: usize, (ino, dir): (u64, u64), name: &str, value: u32) {
        let (name, value) = (name.to_owned().into(), value.to_string().into());
        let q = pb::SetXattr { ino, dir, name, value, ..Default::default() };
        self.disks[disk].engine().set_xattr(SESSION, false, &q).unwrap();
    }

    /// A text is there now, if its file is, and the one it replaced need not be.
    fn written(&mut self, (ino, uid): (u64, u32), before: Option<String>, text: String, is_removed: bool) {
        self.owners.insert(text.clone(), uid);
        if let Some(before) = before {
            self.alive.remove(&before);
        }
        if !is_removed {
            self.alive.insert(text, ino);
        }
    }

    /// A name was taken away. With what it showed goes what hid behind that: a new file of another disk that is empty still, if that
    /// disk has not heard of this one yet and given it another name.
    fn gone(&mut self, disk: usize, seen: &Seen) {
        let hidden = self.opens.iter().filter(|open| open.made.as_ref() == Some(&seen.at)).map(|open| open.ino);
        self.removed.extend(hidden.chain([seen.ino]).map(|ino| (disk, ino)));
        if let Some(text) = &seen.text {
            self.alive.remove(text);
        }
        // What is shown of an open file is what is being written. With that goes the version that came under it.
        if self.is_open(disk, seen.ino) {
            self.alive.retain(|_, ino| *ino != seen.ino);
        }
    }

    fn unlink(&mut self, disk: usize) {
        let Some((seen, text)) = self.pick(disk) else { return };
        let (dir, name) = seen.at.clone();
        let q = pb::Unlink { dir, name: name.clone().into(), ..Default::default() };
        self.disks[disk].engine().unlink(SESSION, false, &q).unwrap();
        self.told.push(format!("{disk}: unlink {dir:x}/{name} {:x} ({text:?})", seen.ino));
        self.gone(disk, &seen);
    }

    /// Whether a change of names was made. It may be one that no file system makes.
    fn is_made<T>(&self, made: FsResult<T>) -> bool {
        let may_be = [Errno::EISDIR, Errno::ENOTDIR, Errno::ENOTEMPTY, Errno::EEXIST, Errno::EINVAL];
        match made {
            Ok(_) => true,
            Err(error) => {
                assert!(self.has_dirs && may_be.contains(&error.errno), "{error}");
                false
            }
        }
    }

    fn mkdir(&mut self, disk: usize) {
        let place = self.place(disk);
        let uid = OWNER + disk as u32;
        let q = pb::Mkdir { dir: place.0, name: place.1.clone().into(), mode: 0o755, uid, gid: uid, token: 0 };
        if self.is_made(self.disks[disk].engine().mkdir(SESSION, false, &q)) {
            self.told.push(format!("{disk}: mkdir {place:x?} {:x?}", self.at(disk, &place).map(|seen| seen.ino)));
        }
    }

    fn rmdir(&mut self, disk: usize) {
        let Some(seen) = self.pick_dir(disk) else { return };
        let q = pb::Rmdir { dir: seen.at.0, name: seen.at.1.clone().into(), ..Default::default() };
        if self.is_made(self.disks[disk].engine().rmdir(SESSION, false, &q)) {
            self.told.push(format!("{disk}: rmdir {:x?} {:x}", seen.at, seen.ino));
            self.gone(disk, &seen);
        }
    }

    fn rename(&mut self, disk: usize) {
        let is_of_dir = self.has_dirs && self.below(2) == 0;
        let picked = if is_of_dir { self.pick_dir(disk) } else { self.pick(disk).map(|(seen, _)| seen) };
        let Some(seen) = picked else { return };
        let to = self.place(disk);
        let over = self.at(disk, &to).filter(|over| over.ino != seen.ino);
        let ((dir, name), (dir2, name2)) = (seen.at.clone(), to.clone());
        let q = pb::Rename { dir, name: name.into(), dir2, name2: name2.into(), ..Default::default() };
        if self.is_made(self.disks[disk].engine().rename(SESSION, false, &q)) {
            self.told.push(format!("{disk}: rename {seen:x?} to {to:x?} ({over:x?})"));
            if let Some(over) = over {
                self.gone(disk, &over);
            }
        }
    }

    fn link(&mut self, disk: usize) {
        let Some((seen, text)) = self.pick(disk) else { return };
        let to = self.place(disk);
        let q = pb::Link { ino: seen.ino, ino_dir: seen.at.0, dir: to.0, name: to.1.clone().into() };
        if self.disks[disk].engine().link(SESSION, false, &q).is_ok() {
            self.told.push(format!("{disk}: link {:x?} {:x} ({text:?}) to {to:x?}", seen.at, seen.ino));
        }
    }

    /// Change the mode, the group or the extended attributes of a file or directory.
    fn chmod(&mut self, disk: usize) {
        let is_of_dir = self.has_dirs && self.below(2) == 0;
        let picked = if is_of_dir { self.pick_dir(disk) } else { self.pick(disk).map(|(seen, _)| seen) };
        let Some(seen) = picked else { return };
        let number = self.below(0o100) as u32;
        let q = pb::SetAttr { ino: seen.ino, dir: seen.at.0, ..Default::default() };
        let q = match self.below(3) {
            0 => pb::SetAttr { mode: Some(0o600 + number), ..q },
            1 => pb::SetAttr { gid: Some(number), ..q },
            _ => {
                self.set_xattr(disk, (seen.ino, seen.at.0), "user.number", number);
                self.told.push(format!("{disk}: setfattr {:x?} {:x}", seen.at, seen.ino));
                return;
            }
        };
        let done = self.disks[disk].engine().set_attr(SESSION, &q);
        assert!(done.is_ok(), "{disk}: chmod {seen:x?}: {:?}\n{:#?}", done.err(), self.shown(disk));
        self.told.push(format!("{disk}: chmod {:x?} {:x}", seen.at, seen.ino));
    }

    /// There is a `lost+found` from the beginning.
    fn lose(&mut self) {
        let (dir, uid) = (Ino::ROOT.0, OWNER);
        let q = pb::Mkdir { dir, name: "old".into(), mode: 0o755, uid, gid: uid, token: 0 };
        let old = self.disks[0].engine().mkdir(SESSION, false, &q).unwrap().node.unwrap().ino;
        self.take(0, 1);
        let q = pb::Rmdir { dir, name: "old".into(), ..Default::default() };
        self.disks[0].engine().rmdir(SESSION, false, &q).unwrap();
        let q = pb::Mkdir { dir: old, name: "a".into(), mode: 0o755, uid, gid: uid, token: 0 };
        self.disks[1].engine().mkdir(SESSION, false, &q).unwrap();
        [(0, 1), (1, 0), (0, 2)].into_iter().for_each(|(from, to)| self.take(from, to));
        assert!(self.shown(2).contains_key("lost+found"));
    }

    /// One takes the other's state.
    fn take(&mut self, from: usize, to: usize) {
        let mut pack = Vec::new();
        let (giver, taker) = (self.disks[from].engine(), self.disks[to].engine());
        giver.commit().unwrap();
        let offer = Offer { state: giver.committed(), base: None };
        giver.export(&offer, &mut pack).unwrap();
        taker.join(&mut &pack[..], offer.state.commit, None).unwrap();
        for (content, size) in giver.store.contents().map(Result::unwrap) {
            if taker.store.has(content).unwrap().is_none() {
                let mut bytes = vec![0; size as usize];
                giver.store.open_content(content, size).unwrap().read_exact_at(&mut bytes, 0).unwrap();
                taker.store.incoming_file(content, size).unwrap().write_all_at(&bytes, 0).unwrap();
                taker.store.finish_incoming(content, size, &|| false).unwrap();
            }
        }
        self.told.push(format!("{to} takes the state of {from}"));
    }

    /// As the policy does all the time. It finds files in different directories that have one number.
    fn look_through(&mut self, disk: usize) {
        let engine = self.disks[disk].engine();
        engine.commit().unwrap();
        engine.ledger().unwrap();
        self.told.push(format!("{disk} looks through all"));
    }

    /// The worker dies. Its frontend does too: what was written is there all the same.
    fn crash(&mut self, disk: usize) {
        self.told.push(format!("{disk}: crash"));
        self.disks[disk].crash();
        let (ended, others) = std::mem::take(&mut self.opens).into_iter().partition(|open: &Open| open.disk == disk);
        self.opens = others;
        for open in ended {
            // Its name may have been taken elsewhere, and nobody was told yet that it was written.
            let is_removed = self.removed.iter().any(|(_, ino)| *ino == open.ino);
            self.written((open.ino, open.uid), open.before, open.text, is_removed);
        }
        self.disks[disk].wait_until_sealed();
    }

    fn step(&mut self) {
        let disk = self.below(DISKS);
        match self.below(22) {
            0..=1 if self.has_dirs => self.mkdir(disk),
            0..=4 => self.open(disk),
            5..=8 if !self.opens.is_empty() => {
                let at = self.below(self.opens.len());
                self.close(at);
            }
            9..=10 => self.unlink(disk),
            11..=12 => self.rename(disk),
            13 | 20 => self.link(disk),
            21 => self.chmod(disk),
            14 if self.has_dirs && self.below(3) > 0 => self.rmdir(disk),
            14 => self.chmod(disk),
            15..=18 => {
                let from = self.below(DISKS);
                if from != disk {
                    self.take(from, disk);
                }
            }
            19 if self.below(3) == 0 => self.crash(disk),
            19 => self.look_through(disk),
            _ => {}
        }
    }

    fn check(&mut self) {
        while !self.opens.is_empty() {
            self.close(0);
        }
        self.disks.iter().for_each(Disk::wait_until_sealed);
        // What one makes of what it takes, the others take too.
        for round in 0..8 {
            if round == 3 {
                (0..DISKS).for_each(|disk| self.look_through(disk));
            }
            for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
                self.take(from, to);
            }
        }
        let commits: BTreeSet<_> = self.disks.iter().map(|disk| disk.engine().committed().commit).collect();
        assert_eq!(commits.len(), 1, "they do not come to an end");
        let mut shown: Vec<_> = (0..DISKS).map(|disk| self.shown(disk)).collect();
        assert!(shown.windows(2).all(|pair| pair[0] == pair[1]), "they show different things: {shown:#x?}");
        let engine = self.disks[0].engine();
        let mut numbers = BTreeSet::new();
        for (path, seen) in &shown[0] {
            let q = pb::Lookup { dir: seen.at.0, name: seen.at.1.clone().into() };
            let pb::Attr { nlink, .. } = engine.lookup(&q).unwrap().node.unwrap();
            assert!(nlink > 1 || numbers.insert(seen.ino), "{path} has the number of another: {:#x?}", shown[0]);
            match &seen.text {
                Some(text) => {
                    // Of an empty one that was linked before it was written.
                    let owner = if text.is_empty() { Some(&seen.uid) } else { self.owners.get(text) };
                    assert_eq!(owner, Some(&seen.uid), "{path} is another's: {text:?}");
                    let q = pb::GetXattr { ino: seen.ino, dir: seen.at.0, name: MARK.into() };
                    let mark = engine.get_xattr(&q).unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert_eq!(mark, seen.uid.to_string().as_bytes(), "{path} has another's attributes: {text:?}");
                }
                None => {
                    let is_somebodys = (OWNER..OWNER + DISKS as u32).contains(&seen.uid);
                    assert!(is_somebodys || seen.ino == Ino::LOST_FOUND.0, "the attributes of {path} are lost");
                }
            }
        }
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
        let texts: BTreeSet<String> = shown[0].values().filter_map(|seen| seen.text.clone()).collect();
        let lost: Vec<&String> = self.alive.keys().filter(|text| !texts.contains(*text)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}\nshown: {:#?}", shown[0]);
        // What is below comes first.
        let mut all: Vec<(usize, Seen)> =
            shown.swap_remove(0).into_iter().map(|(path, seen)| (path.matches('/').count(), seen)).collect();
        all.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        let engine = self.disks[0].engine();
        for (_, Seen { at: (dir, name), text, .. }) in all {
            let (unlink, rmdir) = (pb::Unlink { dir, ..Default::default() }, pb::Rmdir { dir, ..Default::default() });
            let done = match text {
                Some(_) => engine.unlink(SESSION, false, &pb::Unlink { name: name.clone().into(), ..unlink }),
                None => engine.rmdir(SESSION, false, &pb::Rmdir { name: name.clone().into(), ..rmdir }),
            };
            done.unwrap_or_else(|error| panic!("{name} in {dir:x} cannot be removed: {error}"));
        }
        (1..DISKS).for_each(|disk| self.take(0, disk));
        assert!((0..DISKS).all(|disk| self.shown(disk).is_empty()), "removed, and there");
    }
}

fn run(has_dirs: bool, length: usize) {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let seeds = number("REPLICAS_SEED").map(|seed| seed..seed + 1);
    for seed in seeds.unwrap_or(0..number("REPLICAS_SEEDS").unwrap_or(SEEDS)) {
        let mut world = World::new(seed, has_dirs, length);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if has_dirs && seed % 2 == 1 {
                world.lose();
            }
            for _ in 0..STEPS {
                world.step();
            }
            world.check();
        }));
        if let Err(panic) = run {
            eprintln!("REPLICAS_SEED={seed}\n{}", world.told.join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn no_text_is_lost_in_one_directory() {
    run(false, 0);
}

#[test]
fn no_text_is_lost_in_a_tree() {
    run(true, 0);
}

#[test]
fn no_text_is_lost_that_is_a_file_of_its_own() {
    run(true, 5000);
}
