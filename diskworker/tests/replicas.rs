//! Three disks whose users do anything at any time, also with files open, and whose states meet now and then: no text that was
//! closed is lost unless somebody who saw it replaced or removed it. In the end all disks show the same.
//!
//! A failing run prints its seed; `REPLICAS_SEED=n` replays it alone, `REPLICAS_SEEDS=n` tries more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::{Offer, Opening};
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

const DISKS: usize = 3;
const STEPS: usize = 70;
const SEEDS: u64 = 25;
/// Whose all files are.
const OWNER: u32 = 77;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// An open file.
struct Open {
    disk: usize,
    ino: u64,
    handle: u64,
    file: File,
    /// What it showed when it was opened; the name it was made under, if it was.
    before: Option<String>,
    made: Option<String>,
    text: String,
}

struct World {
    disks: Vec<Disk>,
    opens: Vec<Open>,
    /// Texts that must be there.
    alive: BTreeSet<String>,
    /// Inodes of which a name was removed or replaced somewhere: what is open of them may go.
    removed: BTreeSet<u64>,
    texts: usize,
    random: u64,
    told: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let disks = (0..DISKS).map(|_| Disk::new()).collect();
        let (alive, removed) = Default::default();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { disks, opens: Vec::new(), alive, removed, texts: 0, random, told: Vec::new() }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }

    fn text(&mut self, disk: usize) -> String {
        self.texts += 1;
        format!("text {} of disk {disk}", self.texts)
    }

    /// All names of a disk with what they show.
    fn shown(&self, disk: usize) -> BTreeMap<String, (u64, String)> {
        let engine = self.disks[disk].engine();
        let list = engine.list(Ino::ROOT.0).unwrap();
        let read = |(name, attr): (Vec<u8>, pb::Attr)| {
            let text = String::from_utf8(engine.read(&[&name]).unwrap()).unwrap();
            (String::from_utf8(name).unwrap(), (attr.ino, text))
        };
        list.into_iter().map(read).collect()
    }

    /// A name that is there, if any.
    fn pick(&mut self, disk: usize) -> Option<(String, u64, String)> {
        let shown = self.shown(disk);
        let at = self.below(shown.len().max(1));
        shown.into_iter().nth(at).map(|(name, (ino, text))| (name, ino, text))
    }

    fn is_open(&self, disk: usize, ino: u64) -> bool {
        self.opens.iter().any(|open| open.disk == disk && open.ino == ino)
    }

    /// Begin to write: a new file, or one that is there.
    fn open(&mut self, disk: usize) {
        let text = self.text(disk);
        let name = NAMES[self.below(NAMES.len())].to_owned();
        let is_new = !self.shown(disk).contains_key(&name);
        let engine = self.disks[disk].engine().clone();
        let (ino, before, opened) = if is_new {
            let q =
                pb::Create { dir: Ino::ROOT.0, name: name.clone().into(), mode: 0o644, uid: OWNER, gid: OWNER, ino: 0 };
            let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
            (answer.node.unwrap().ino, None, opening)
        } else {
            let Some((_, ino, before)) = self.pick(disk) else { return };
            if self.is_open(disk, ino) {
                return;
            }
            let q = pb::Open { ino, dir: Ino::ROOT.0, write: true, truncate: true };
            (ino, Some(before), engine.open(SESSION, &q).unwrap().1)
        };
        let Opening::File { handle, file } = opened else { panic!("a writer gets a descriptor") };
        file.write_all_at(text.as_bytes(), 0).unwrap();
        self.told.push(format!("{disk}: open {ino:x} ({before:?}, new: {is_new} {name}) for {text:?}"));
        let made = is_new.then_some(name);
        self.opens.push(Open { disk, ino, handle, file, before, made, text });
    }

    fn close(&mut self, at: usize) {
        let open = self.opens.swap_remove(at);
        drop(open.file);
        self.disks[open.disk].engine().close(SESSION, open.handle, false).unwrap();
        self.told.push(format!("{}: close {:?}", open.disk, open.text));
        self.written(open.ino, open.before, open.text);
    }

    /// A text is there now, if its file is, and the one it replaced need not be.
    fn written(&mut self, ino: u64, before: Option<String>, text: String) {
        if let Some(before) = before {
            self.alive.remove(&before);
        }
        if !self.removed.contains(&ino) {
            self.alive.insert(text);
        }
    }

    /// A name was taken away. With what it showed goes what hid behind that: a new file of another disk that is empty still, if that
    /// disk has not heard of this one yet and given it another name.
    fn gone(&mut self, name: &str, ino: u64, text: &str) {
        let hidden = self.opens.iter().filter(|open| open.made.as_deref() == Some(name)).map(|open| open.ino);
        self.removed.extend(hidden.chain([ino]));
        self.alive.remove(text);
    }

    fn unlink(&mut self, disk: usize) {
        let Some((name, ino, text)) = self.pick(disk) else { return };
        let q = pb::Unlink { dir: Ino::ROOT.0, name: name.clone().into(), ..Default::default() };
        self.disks[disk].engine().unlink(SESSION, false, &q).unwrap();
        self.told.push(format!("{disk}: unlink {name} {ino:x} ({text:?})"));
        self.gone(&name, ino, &text);
    }

    fn rename(&mut self, disk: usize) {
        let Some((from, ino, text)) = self.pick(disk) else { return };
        let to = NAMES[self.below(NAMES.len())];
        let over = self.shown(disk).remove(to).filter(|(over, _)| *over != ino);
        let (dir, dir2) = (Ino::ROOT.0, Ino::ROOT.0);
        let q = pb::Rename { dir, name: from.clone().into(), dir2, name2: to.into(), ..Default::default() };
        self.disks[disk].engine().rename(SESSION, false, &q).unwrap();
        self.told.push(format!("{disk}: rename {from} {ino:x} ({text:?}) to {to} ({over:?})"));
        if let Some((over, text)) = over {
            self.gone(to, over, &text);
        }
    }

    fn link(&mut self, disk: usize) {
        let Some((from, ino, text)) = self.pick(disk) else { return };
        let name = NAMES[self.below(NAMES.len())];
        let q = pb::Link { ino, ino_dir: Ino::ROOT.0, dir: Ino::ROOT.0, name: name.into() };
        if self.disks[disk].engine().link(SESSION, false, &q).is_ok() {
            self.told.push(format!("{disk}: link {from} {ino:x} ({text:?}) to {name}"));
        }
    }

    fn chmod(&mut self, disk: usize) {
        let Some((name, ino, _)) = self.pick(disk) else { return };
        let mode = 0o600 + self.below(0o100) as u32;
        let q = pb::SetAttr { ino, dir: Ino::ROOT.0, mode: Some(mode), ..Default::default() };
        let done = self.disks[disk].engine().set_attr(SESSION, &q);
        assert!(done.is_ok(), "{disk}: chmod {name} {ino:x}: {:?}\n{:#?}", done.err(), self.shown(disk));
        self.told.push(format!("{disk}: chmod {name} {ino:x}"));
    }

    /// One takes the other's state.
    fn take(&mut self, from: usize, to: usize) {
        let mut pack = Vec::new();
        let (giver, taker) = (self.disks[from].engine(), self.disks[to].engine());
        giver.commit().unwrap();
        let offer = Offer { state: giver.committed(), base: None };
        giver.export(&offer, &mut pack).unwrap();
        taker.join(&mut &pack[..], offer.state.commit, None).unwrap();
        self.told.push(format!("{to} takes the state of {from}"));
    }

    /// The worker dies. Its frontend does too: what was written is there all the same.
    fn crash(&mut self, disk: usize) {
        self.told.push(format!("{disk}: crash"));
        self.disks[disk].crash();
        let (ended, others) = std::mem::take(&mut self.opens).into_iter().partition(|open: &Open| open.disk == disk);
        self.opens = others;
        for open in ended {
            self.written(open.ino, open.before, open.text);
        }
        self.disks[disk].wait_until_sealed();
    }

    fn step(&mut self) {
        let disk = self.below(DISKS);
        match self.below(20) {
            0..=4 => self.open(disk),
            5..=8 if !self.opens.is_empty() => {
                let at = self.below(self.opens.len());
                self.close(at);
            }
            9..=10 => self.unlink(disk),
            11..=12 => self.rename(disk),
            13 => self.link(disk),
            14 => self.chmod(disk),
            15..=18 => {
                let from = self.below(DISKS);
                if from != disk {
                    self.take(from, disk);
                }
            }
            19 if self.below(3) == 0 => self.crash(disk),
            _ => {}
        }
    }

    fn check(&mut self) {
        while !self.opens.is_empty() {
            self.close(0);
        }
        self.disks.iter().for_each(Disk::wait_until_sealed);
        // What one makes of what it takes, the others take too.
        for _ in 0..4 {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
                self.take(from, to);
            }
        }
        let commits: BTreeSet<_> = self.disks.iter().map(|disk| disk.engine().committed().commit).collect();
        assert_eq!(commits.len(), 1, "they do not come to an end");
        let owners = |disk: &Disk| disk.engine().list(Ino::ROOT.0).unwrap().into_iter().map(|(_, attr)| attr.uid);
        assert!(owners(&self.disks[0]).all(|uid| uid == OWNER), "attributes are lost");
        let shown: Vec<_> = (0..DISKS).map(|disk| self.shown(disk)).collect();
        assert!(shown.windows(2).all(|pair| pair[0] == pair[1]), "they show different things: {shown:#?}");
        let texts: BTreeSet<String> = shown[0].values().map(|(_, text)| text.clone()).collect();
        let lost: Vec<&String> = self.alive.difference(&texts).collect();
        assert!(lost.is_empty(), "lost: {lost:?}\nshown: {:#?}", shown[0]);
    }
}

#[test]
fn no_text_is_lost_whatever_is_done_where() {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let seeds = number("REPLICAS_SEED").map(|seed| seed..seed + 1);
    for seed in seeds.unwrap_or(0..number("REPLICAS_SEEDS").unwrap_or(SEEDS)) {
        let mut world = World::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
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
