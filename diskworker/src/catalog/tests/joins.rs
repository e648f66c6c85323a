//! Joins against their definition, between replicas that are partitioned at random.

use std::collections::{BTreeMap, BTreeSet};

use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::record::*;
use proptest::prelude::*;
use tempfile::TempDir;

use super::world::*;
use crate::catalog::{Catalog, ImportLimits, State};

/// A catalog and what it must say.
struct Replica {
    _dir: TempDir,
    catalog: Catalog,
    model: Model,
    actor: ActorId,
}

impl Replica {
    fn new(number: u64) -> Self {
        let (dir, catalog) = new_catalog();
        Self { _dir: dir, catalog, model: Model::default(), actor: ActorId(100 + number) }
    }

    /// Send this replica's state to another one, as little of it as possible.
    fn send(&self, to: &Replica) -> State {
        let mut pack = Vec::new();
        let commit = export(&self.catalog, Some(to.catalog.state().commit), &mut pack).unwrap();
        to.catalog.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap()
    }

    /// Pull another replica's state and join it, comparing with the definition.
    fn pull(&mut self, from: &Replica) {
        let before = self.model.clone();
        self.model = self.model.join(&from.model);
        let theirs = from.send(self);
        assert_eq!(theirs, from.catalog.state());
        let joined = self.catalog.join(&theirs).unwrap();
        assert_eq!(joined.state, self.catalog.state());
        let expected = self.model.changes_from(&before).sets;
        assert_eq!(joined.changed, expected);
        assert_eq!(joined.state.ctx, self.model.ctx);
        let again = self.catalog.join(&theirs).unwrap();
        assert!(again.changed.is_empty() && again.state == joined.state, "not idempotent");
    }

    fn edit(&mut self, ops: &[(Key, u8)], gone: &mut BTreeSet<Dot>) {
        let before = self.model.clone();
        for (key, variant) in ops {
            let dot = self.model.draw(self.actor);
            let set = self.model.sets.entry(key.clone()).or_default();
            let old = set.clone();
            *set = match variant % 5 {
                0 => Vec::new(),
                // One of several stays.
                1 if !set.is_empty() => vec![set.remove(usize::from(*variant) % set.len())],
                _ => vec![element(dot, *variant)],
            };
            gone.extend(old.iter().filter(|element| !set.contains(element)).map(|element| element.dot));
            if set.is_empty() {
                self.model.sets.remove(key);
            }
        }
        self.catalog.commit(&self.model.changes_from(&before), &self.model.ctx).unwrap();
    }
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        8 => (0..90u16).prop_map(|n| Key::Entry(Ino::ROOT, name(n))),
        3 => (0..4u64, 0..3u16).prop_map(|(d, n)| Key::Entry(Ino(16 + d * 17), name(n))),
        1 => (0..3u64).prop_map(|i| Key::Inode(Ino(16 + i))),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Edit(usize, Vec<(Key, u8)>),
    Pull(usize, usize),
    Consolidate(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, prop::collection::vec((key(), any::<u8>()), 1..70)).prop_map(|(r, ops)| Step::Edit(r, ops)),
        4 => (0..3usize, 1..3usize).prop_map(|(a, by)| Step::Pull(a, (a + by) % 3)),
        1 => (0..3usize).prop_map(Step::Consolidate),
    ]
}

/// Two of the replicas, one to change.
fn two(replicas: &mut [Replica], to: usize, from: usize) -> (&mut Replica, &Replica) {
    let [to, from] = replicas.get_disjoint_mut([to, from]).unwrap();
    (to, from)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn replicas_converge_and_lose_nothing(steps in prop::collection::vec(step(), 1..24)) {
        let mut replicas: Vec<Replica> = (0..3).map(Replica::new).collect();
        let (mut made, mut gone) = (BTreeMap::new(), BTreeSet::new());
        for step in &steps {
            match step {
                Step::Edit(r, ops) => {
                    replicas[*r].edit(ops, &mut gone);
                    for (key, set) in &replicas[*r].model.sets {
                        made.extend(set.iter().map(|element| (element.dot, (key.clone(), element.clone()))));
                    }
                }
                Step::Pull(to, from) => {
                    let (to, from) = two(&mut replicas, *to, *from);
                    to.pull(from);
                }
                Step::Consolidate(r) => replicas[*r].catalog.consolidate(u64::MAX).unwrap(),
            }
        }
        for (to, from) in [(1, 0), (2, 1), (0, 2), (1, 0)] {
            let (to, from) = two(&mut replicas, to, from);
            to.pull(from);
        }
        let state = replicas[0].catalog.state();
        for replica in &replicas {
            prop_assert_eq!(replica.catalog.state().commit, state.commit, "diverged");
            replica.model.assert_is(&replica.catalog);
            prop_assert_eq!(replica.catalog.verify().unwrap().problems, Vec::<String>::new());
        }
        prop_assert_eq!(replicas[0].model.build_anew().2.tree, state.tree, "not the canonical tree");
        for (dot, (key, element)) in made.iter().filter(|(dot, _)| !gone.contains(*dot)) {
            let kept = replicas[0].model.sets.get(key).is_some_and(|set| set.contains(element));
            prop_assert!(kept, "{dot:?} of {key:?} is lost");
        }
    }

    #[test]
    fn joins_commute_and_associate(
        edits in prop::collection::vec((0..3usize, prop::collection::vec((key(), any::<u8>()), 1..40)), 1..6),
        common in prop::collection::vec((key(), any::<u8>()), 0..120),
    ) {
        let mut replicas: Vec<Replica> = (0..3).map(Replica::new).collect();
        let mut gone = BTreeSet::new();
        replicas[0].edit(&common, &mut gone);
        for to in [1, 2] {
            let (to, from) = two(&mut replicas, to, 0);
            to.pull(from);
        }
        for (r, ops) in &edits {
            replicas[*r].edit(ops, &mut gone);
        }
        let order = |order: [usize; 3]| {
            let mut one = Replica::new(9);
            for r in order {
                one.pull(&replicas[r]);
            }
            one.catalog.state().commit
        };
        let abc = order([0, 1, 2]);
        for other in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            prop_assert_eq!(order(other), abc);
        }
        // (0 + 1) + 2 and 0 + (1 + 2), from the other side.
        let (one, two_) = two(&mut replicas, 1, 2);
        one.pull(two_);
        let (zero, one) = two(&mut replicas, 0, 1);
        zero.pull(one);
        prop_assert_eq!(replicas[0].catalog.state().commit, abc);
    }
}

#[test]
fn what_one_side_removed_goes_even_where_the_other_has_a_whole_subtree() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let keys: Vec<Key> = (0..300).map(|n| Key::Entry(Ino(400), name(n))).collect();
    a.edit(&keys.iter().map(|key| (key.clone(), 4)).collect::<Vec<_>>(), &mut BTreeSet::new());
    b.pull(&a);
    b.edit(&keys.iter().map(|key| (key.clone(), 0)).collect::<Vec<_>>(), &mut BTreeSet::new());
    a.edit(&[(Key::Entry(Ino(400), name(1000)), 4)], &mut BTreeSet::new());
    a.pull(&b);
    b.pull(&a);
    assert_eq!(a.model.sets.len(), 1);
    a.model.assert_is(&a.catalog);
    assert_eq!(a.catalog.state().commit, b.catalog.state().commit);
}

#[test]
fn fast_forward_writes_nothing() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let ops: Vec<(Key, u8)> = (0..200).map(|n| (Key::Entry(Ino::ROOT, name(n)), 4)).collect();
    a.edit(&ops, &mut BTreeSet::new());
    b.pull(&a);
    a.edit(&ops[..50], &mut BTreeSet::new());
    let theirs = a.send(&b);
    let packs = b.catalog.packs();
    let joined = b.catalog.join(&theirs).unwrap();
    assert_eq!((joined.state.commit, b.catalog.packs()), (a.catalog.state().commit, packs));
    assert_eq!(joined.changed.len(), 50);
    assert!(a.catalog.join(&joined.state).unwrap().changed.is_empty());
}

/// Two hosts have given one file names before they met. Each set alone is as large as older versions made them.
#[test]
fn large_sets_that_were_made_apart_are_joined() {
    let ino = Ino(90);
    let made = |actor: u64| {
        let mut model = Model::default();
        let long = |n: u32| Name::new(format!("{actor}{n:0>254}").as_bytes()).unwrap();
        let names = (0..32_000).map(|n| {
            let (dot, body) = (model.draw(ActorId(actor)), Body::Ref { dir: Ino::ROOT, name: long(n) });
            Element { dot, body, hlc: Hlc(1) }
        });
        let set: Vec<Element> = names.collect();
        model.sets.insert(Key::Inode(ino), set);
        model.build_anew()
    };
    let ((_d, one, _), (_e, two, _)) = (made(1), made(2));
    let mut pack = Vec::new();
    let commit = export(&two, None, &mut pack).unwrap();
    let theirs = one.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    let joined = one.join(&theirs).unwrap();
    assert_eq!(joined.changed[&Key::Inode(ino)].len(), 64_000);
    // The other one takes that as it is.
    let mut pack = Vec::new();
    let commit = export(&one, Some(two.state().commit), &mut pack).unwrap();
    let theirs = two.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    assert_eq!(two.join(&theirs).unwrap().state.commit, joined.state.commit);
}
