//! What the kernel may know wrongly when a change was made, or a part of it, and it has not heard the answer. Nearly every answer is heard: so
//! nothing is made of it before that is known, but for noting whose the names were.

use bytes::Bytes;

use crate::fs::{Fs, Invalidation};

/// What one operation changes.
#[derive(Clone, Default)]
pub(super) struct Doubtful {
    names: [Option<(u64, Bytes)>; 2],
    /// The inodes that have them.
    inos: [Option<u64>; 2],
    other: Option<Invalidation>,
}

impl Doubtful {
    /// This name, and what it is of.
    pub fn name(dir: u64, name: &Bytes) -> Self {
        Self { names: [Some((dir, name.clone())), None], ..Self::default() }
    }

    /// The same of two.
    pub fn names((dir, name): (u64, &Bytes), (dir2, name2): (u64, &Bytes)) -> Self {
        Self { names: [Some((dir, name.clone())), Some((dir2, name2.clone()))], ..Self::default() }
    }

    /// This alone.
    pub fn of(what: Invalidation) -> Self {
        Self::default().and(what)
    }

    /// This as well.
    pub fn and(self, what: Invalidation) -> Self {
        Self { other: Some(what), ..self }
    }

    /// Note whose the names are; before the change: afterwards nobody knows it any more.
    pub fn noted(mut self, fs: &Fs) -> Self {
        for (ino, name) in self.inos.iter_mut().zip(&self.names) {
            *ino = name.as_ref().and_then(|(dir, name)| fs.named(*dir, name));
        }
        self
    }

    /// Have the kernel drop all of it.
    pub fn drop_all(self, fs: &Fs) {
        for (ino, name) in self.inos.into_iter().zip(self.names) {
            ino.map(Invalidation::Attr).into_iter().for_each(|what| fs.invalidate(what));
            if let Some((dir, name)) = name {
                fs.invalidate(Invalidation::Name { dir, name: Box::from(&name[..]) });
                fs.invalidate(Invalidation::Dir(dir));
            }
        }
        self.other.into_iter().for_each(|what| fs.invalidate(what));
    }
}
