//! What a frontend asks, over the socket: the calls tests make, and the whole tree as it shows it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use delugefs_proto::errno::FsResult;
use delugefs_proto::local::client::{Client, check, op};
use delugefs_proto::local_pb::{self as pb, reply, request};

/// What is open for writing.
pub struct Writer {
    pub attr: pb::Attr,
    pub handle: u64,
    pub file: File,
}

/// One node of the tree: its attributes, what it holds, its extended attributes.
pub type Shown = (pb::Attr, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

pub trait User {
    fn ask(&mut self, op: request::Op) -> FsResult<(pb::Reply, Option<File>)>;

    fn node(&mut self, op: request::Op) -> FsResult<pb::Attr> {
        Ok(self.ask(op)?.0.node.unwrap())
    }

    fn data(&mut self, op: request::Op) -> FsResult<Vec<u8>> {
        match self.ask(op)?.0.body {
            Some(reply::Body::Data(data)) => Ok(data.to_vec()),
            other => panic!("{other:?} is no data"),
        }
    }

    fn mkdir(&mut self, dir: u64, name: &str) -> FsResult<u64> {
        let q = pb::Mkdir { dir, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
        Ok(self.node(request::Op::Mkdir(q))?.ino)
    }

    fn create(&mut self, dir: u64, name: &str) -> FsResult<Writer> {
        let q = pb::Create { dir, name: name.to_owned().into(), mode: 0o640, uid: 1, gid: 2, ino: 0 };
        let (reply, file) = self.ask(request::Op::Create(q))?;
        Ok(writer(reply, file))
    }

    fn open_write(&mut self, attr: &pb::Attr) -> FsResult<Writer> {
        let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: false };
        let (reply, file) = self.ask(request::Op::Open(q))?;
        Ok(writer(reply, file))
    }

    fn close(&mut self, writer: Writer) -> FsResult<()> {
        drop(writer.file);
        self.ask(request::Op::Close(pb::Close { handle: writer.handle, ..Default::default() })).map(drop)
    }

    /// A file with these bytes, closed.
    fn put(&mut self, dir: u64, name: &str, bytes: &[u8]) -> FsResult<pb::Attr> {
        let writer = self.create(dir, name)?;
        let attr = writer.attr;
        let written = writer.file.write_all_at(bytes, 0);
        self.close(writer)?;
        written?;
        Ok(attr)
    }

    fn lookup(&mut self, dir: u64, name: &str) -> FsResult<pb::Attr> {
        self.node(request::Op::Lookup(pb::Lookup { dir, name: name.to_owned().into() }))
    }

    fn unlink(&mut self, dir: u64, name: &str) -> FsResult<()> {
        self.ask(request::Op::Unlink(pb::Unlink { dir, name: name.to_owned().into(), expect_ino: 0 })).map(drop)
    }

    fn list(&mut self, dir: u64) -> FsResult<Vec<(Bytes, pb::Attr)>> {
        let mut all: Vec<(Bytes, pb::Attr)> = Vec::new();
        loop {
            let after = all.last().map_or_else(Bytes::new, |(name, _)| name.clone());
            let reply = self.ask(request::Op::ReadDir(pb::ReadDir { dir, after, limit: 1000 }))?.0;
            let Some(reply::Body::Listing(page)) = reply.body else { panic!("no listing") };
            all.extend(page.entries.into_iter().map(|entry| (entry.name, entry.attr.unwrap())));
            if !page.more {
                return Ok(all);
            }
        }
    }

    fn read(&mut self, attr: &pb::Attr) -> FsResult<Vec<u8>> {
        let q = pb::Open { ino: attr.ino, dir: attr.dir, write: false, truncate: false };
        let (reply, file) = self.ask(request::Op::Open(q))?;
        match (file, reply.body) {
            (Some(file), _) => {
                let mut bytes = vec![0; file.metadata()?.len().try_into().unwrap()];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes)
            }
            (None, Some(reply::Body::Opened(opened))) if opened.has_inline => Ok(opened.inline.to_vec()),
            (None, other) => panic!("{other:?} opens nothing"),
        }
    }

    /// Everything there is, by path.
    fn tree(&mut self) -> BTreeMap<String, Shown> {
        let root = self.node(request::Op::GetAttr(pb::GetAttr { ino: 1, dir: 0 })).unwrap();
        let mut all = BTreeMap::new();
        let mut todo = vec![(String::new(), root)];
        while let Some((path, attr)) = todo.pop() {
            let (ino, dir) = (attr.ino, attr.dir);
            let mut holds = Vec::new();
            match attr.mode & 0o170000 {
                0o040000 => {
                    let entries = self.list(ino).unwrap();
                    todo.extend(entries.into_iter().map(|(name, attr)| (format!("{path}/{name:?}"), attr)));
                }
                0o100000 => holds = self.read(&attr).unwrap(),
                0o120000 => holds = self.data(request::Op::ReadLink(pb::ReadLink { ino, dir })).unwrap(),
                _ => {}
            }
            let names = self.data(request::Op::ListXattr(pb::ListXattr { ino, dir })).unwrap();
            let names = names.split(|b| *b == 0).filter(|name| !name.is_empty()).map(Bytes::copy_from_slice);
            let xattrs = names.map(|name| {
                let q = pb::GetXattr { ino, dir, name: name.clone() };
                (name.to_vec(), self.data(request::Op::GetXattr(q)).unwrap())
            });
            let xattrs = xattrs.collect();
            all.insert(path, (attr, holds, xattrs));
        }
        all
    }
}

fn writer(reply: pb::Reply, file: Option<File>) -> Writer {
    let Some(reply::Body::Opened(opened)) = reply.body else { panic!("not opened") };
    Writer { attr: reply.node.unwrap(), handle: opened.handle, file: file.unwrap() }
}

impl User for Client {
    fn ask(&mut self, q: request::Op) -> FsResult<(pb::Reply, Option<File>)> {
        let (reply, fd) = self.call(&op(q), None)?;
        Ok((check(reply)?, fd.map(File::from)))
    }
}
