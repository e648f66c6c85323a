//! Any sequence of operations, and what a closed file is at once.

use super::*;

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn any_sequence_of_operations() {
    let mounted = Mounted::start();
    for seed in 0..4 {
        let sub = format!("run{seed}");
        same_on(&mounted, |dir, told| {
            let dir = dir.join(&sub);
            fs::create_dir(&dir).unwrap();
            random_steps(&dir, seed, told);
        });
        fs::remove_dir_all(mounted.path(&sub)).unwrap();
    }
}

fn random_steps(dir: &Path, seed: u64, told: &mut Vec<String>) {
    let mut random = Random(seed);
    let mut open: Vec<File> = Vec::new();
    for _ in 0..1500 {
        // Few names, so that they meet.
        let mut name = |depth: u64| {
            let mut path = dir.to_owned();
            for _ in 0..=random.below(depth) {
                path.push(["a", "b", "c", "d"][random.below(4) as usize]);
            }
            path
        };
        let (path, other) = (name(3), name(3));
        let step = random.below(20);
        let size = [0, 10, 4096, 5000, 70_000][random.below(5) as usize];
        let what = match step {
            0 | 1 => said(fs::create_dir(&path)),
            2 | 3 => said(fs::write(&path, vec![size as u8; size])),
            4 => said(fs::remove_file(&path)),
            5 => said(fs::remove_dir(&path)),
            6 | 7 => said(fs::rename(&path, &other)),
            8 => said(fs::hard_link(&path, &other)),
            9 => said(symlink("a/b", &path)),
            10 => said(fs::set_permissions(&path, PermissionsExt::from_mode(0o600 + random.below(0o100) as u32))),
            11 => said(fs::read(&path).map(|bytes| (bytes.len(), bytes.last().copied()))),
            12 => errno(nix::unistd::truncate(&path, size as i64 / 3)),
            13 => said(File::options().read(true).write(true).open(&path).map(|file| open.push(file))),
            14 | 15 if !open.is_empty() => {
                let at = random.below(open.len() as u64) as usize;
                said(open[at].write_at(&vec![step as u8; size / 2], random.below(9000)))
            }
            16 if !open.is_empty() => {
                let at = random.below(open.len() as u64) as usize;
                let mut buf = vec![0; 10_000];
                said(open[at].read_at(&mut buf, random.below(9000)).map(|n| {
                    (n, buf.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte))))
                }))
            }
            17 if !open.is_empty() => {
                let file = open.swap_remove(random.below(open.len() as u64) as usize);
                let meta = file.metadata().unwrap();
                format!("{} {:o}", meta.size(), meta.mode())
            }
            18 => said(fs::read_dir(&path).map(|entries| {
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            })),
            _ => describe(&path),
        };
        told.push(format!("{step} {what}"));
    }
}

#[test]
fn a_closed_file_is_at_once_what_was_written() {
    let mounted = Mounted::start();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let dir = mounted.path(&format!("t{thread}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for n in 0..400_usize {
                    let size = 1 + n * 37 % 9000;
                    let path = dir.join(format!("f{}", n % 7));
                    fs::write(&path, vec![n as u8; size]).unwrap();
                    assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
                    let listed = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
                    let entry = listed.into_iter().find(|entry| entry.path() == path).unwrap();
                    assert_eq!(entry.metadata().unwrap().len(), size as u64);
                    assert_eq!(fs::read(&path).unwrap(), vec![n as u8; size]);
                }
            });
        }
    });
}
