//! A disk that remembers what was synced.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// One recorded operation; paths are relative to the sandbox.
#[derive(Debug, Clone)]
pub enum Op {
    /// A new, empty file.
    Create(String),
    /// Bytes of a file.
    Write(String, usize, Vec<u8>),
    /// fsync of a file.
    Sync(String),
    /// A second name.
    Link(String, String),
    /// Another name.
    Rename(String, String),
    /// A name less.
    Unlink(String),
    /// A new folder.
    Mkdir(String),
    /// fsync of a folder.
    SyncDir(String),
}

impl Op {
    /// Without the bytes.
    pub fn short(&self) -> String {
        match self {
            Op::Write(path, at, bytes) => format!("write of {} bytes at {at} of {path}", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

/// Reads a recording; what happened outside of `root` (fsyncs of the folders above it) is left out.
pub fn parse(mut recording: &[u8], root: &Path) -> Vec<Op> {
    let root = root.to_str().expect("a sandbox has a plain name");
    let mut ops = Vec::new();
    while !recording.is_empty() {
        let end = recording.iter().position(|&byte| byte == b'\n').expect("entries end with a newline");
        let line = std::str::from_utf8(&recording[..end]).expect("names are text");
        recording = &recording[end + 1..];
        let words: Vec<&str> = line.split('\t').collect();
        let below = |at: usize| words[at].strip_prefix(root).map(|path| path.trim_start_matches('/').to_string());
        let op = match words[0] {
            "create" => below(1).map(Op::Create),
            "sync" => below(1).map(Op::Sync),
            "unlink" => below(1).map(Op::Unlink),
            "mkdir" => below(1).map(Op::Mkdir),
            "syncdir" => below(1).map(Op::SyncDir),
            "link" => below(1).zip(below(2)).map(|(from, to)| Op::Link(from, to)),
            "rename" => below(1).zip(below(2)).map(|(from, to)| Op::Rename(from, to)),
            "write" => {
                let (at, length): (usize, usize) =
                    (words[1].parse().expect("a number"), words[2].parse().expect("one"));
                let bytes = recording[..length].to_vec();
                recording = &recording[length..];
                below(3).map(|path| Op::Write(path, at, bytes))
            }
            other => panic!("unknown operation {other}"),
        };
        assert!(op.is_some() || words[0] == "syncdir", "written outside of the sandbox: {line}");
        ops.extend(op);
    }
    ops
}

type Id = usize;

/// A change of a folder that is not on disk yet.
#[derive(Debug, Clone)]
enum Change {
    Add(String, Id),
    Remove(String),
    /// Atomic: both names change or none.
    Move(String, String, Id),
}

#[derive(Debug, Clone)]
enum Node {
    File { now: Vec<u8>, synced: Rc<Vec<u8>> },
    Folder { now: BTreeMap<String, Id>, synced: BTreeMap<String, Id>, pending: Vec<Change> },
}

/// What becomes of bytes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The file is as it was when it was synced last: empty, if it never was.
    Synced,
    /// Half of them.
    Torn,
    /// The size, but not the bytes.
    Zeros,
    /// All.
    Whole,
}

/// The disk and the page cache over it.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: Vec<Node>,
}

impl Default for Disk {
    fn default() -> Self {
        Disk { nodes: vec![folder()] }
    }
}

fn folder() -> Node {
    Node::Folder { now: BTreeMap::new(), synced: BTreeMap::new(), pending: Vec::new() }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn apply_change(entries: &mut BTreeMap<String, Id>, change: &Change) {
    match change {
        Change::Add(name, id) => drop(entries.insert(name.clone(), *id)),
        Change::Remove(name) => drop(entries.remove(name)),
        Change::Move(from, to, id) => {
            entries.remove(from);
            entries.insert(to.clone(), *id);
        }
    }
}

impl Disk {
    fn find(&self, path: &str) -> Id {
        path.split('/').filter(|name| !name.is_empty()).fold(0, |id, name| match &self.nodes[id] {
            Node::Folder { now, .. } => *now.get(name).unwrap_or_else(|| panic!("{path}: no {name}")),
            Node::File { .. } => panic!("{path}: {name} lies in a file"),
        })
    }

    fn change(&mut self, folder: &str, change: Change) {
        let id = self.find(folder);
        let Node::Folder { now, pending, .. } = &mut self.nodes[id] else { panic!("{folder} is a file") };
        apply_change(now, &change);
        pending.push(change);
    }

    fn add(&mut self, path: &str, node: Node) {
        self.nodes.push(node);
        let (folder, name) = split(path);
        self.change(folder, Change::Add(name.to_string(), self.nodes.len() - 1));
    }

    /// One more operation.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => self.add(path, Node::File { now: Vec::new(), synced: Rc::default() }),
            Op::Mkdir(path) => self.add(path, folder()),
            Op::Write(path, at, bytes) => {
                let id = self.find(path);
                let Node::File { now, .. } = &mut self.nodes[id] else { panic!("{path} is a folder") };
                now.resize(now.len().max(at + bytes.len()), 0);
                now[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Op::Sync(path) => {
                let id = self.find(path);
                let Node::File { now, synced } = &mut self.nodes[id] else { panic!("{path} is a folder") };
                *synced = Rc::new(now.clone());
            }
            Op::Link(from, to) => {
                let (id, (folder, name)) = (self.find(from), split(to));
                self.change(folder, Change::Add(name.to_string(), id));
            }
            Op::Rename(from, to) => {
                let (id, (folder, name)) = (self.find(from), split(to));
                assert_eq!(split(from).0, folder, "temporary names lie beside their destination");
                self.change(folder, Change::Move(split(from).1.to_string(), name.to_string(), id));
            }
            Op::Unlink(path) => {
                let (folder, name) = split(path);
                self.change(folder, Change::Remove(name.to_string()));
            }
            Op::SyncDir(path) => {
                let id = self.find(path);
                let Node::Folder { now, synced, pending } = &mut self.nodes[id] else { panic!("{path} is a file") };
                *synced = now.clone();
                pending.clear();
            }
        }
    }

    /// How many changes of folders are not on disk.
    pub fn pending(&self) -> usize {
        let count = |node: &Node| if let Node::Folder { pending, .. } = node { pending.len() } else { 0 };
        self.nodes.iter().map(count).sum()
    }

    /// What a power cut leaves: `name` decides over unsynced changes of folders, by number, `content` over unsynced bytes.
    pub fn survivors(&self, name: &mut dyn FnMut(usize) -> bool, content: &mut dyn FnMut() -> Content) -> Tree {
        let mut folders: HashMap<Id, BTreeMap<String, Id>> = HashMap::new();
        let mut number = 0;
        for (id, node) in self.nodes.iter().enumerate() {
            let Node::Folder { synced, pending, .. } = node else { continue };
            let mut entries = synced.clone();
            for change in pending {
                if name(number) {
                    apply_change(&mut entries, change);
                }
                number += 1;
            }
            folders.insert(id, entries);
        }
        let mut bytes: HashMap<Id, Arc<Vec<u8>>> = HashMap::new();
        let mut tree = Tree::default();
        self.collect(0, "", &folders, &mut bytes, content, &mut tree);
        tree
    }

    fn collect(
        &self,
        id: Id,
        path: &str,
        folders: &HashMap<Id, BTreeMap<String, Id>>,
        bytes: &mut HashMap<Id, Arc<Vec<u8>>>,
        content: &mut dyn FnMut() -> Content,
        tree: &mut Tree,
    ) {
        for (name, &id) in &folders[&id] {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            match &self.nodes[id] {
                Node::Folder { .. } => {
                    tree.0.insert(path.clone(), None);
                    self.collect(id, &path, folders, bytes, content, tree);
                }
                Node::File { now, synced } => {
                    // Two names of one file show the same bytes.
                    let kept = bytes.entry(id).or_insert_with(|| Arc::new(kept(now, synced, content)));
                    tree.0.insert(path, Some(kept.clone()));
                }
            }
        }
    }
}

fn kept(now: &Vec<u8>, synced: &Rc<Vec<u8>>, content: &mut dyn FnMut() -> Content) -> Vec<u8> {
    if now == &**synced {
        return now.clone();
    }
    match content() {
        Content::Synced => synced.to_vec(),
        Content::Torn => now[..now.len() / 2].to_vec(),
        Content::Zeros => vec![0; now.len()],
        Content::Whole => now.clone(),
    }
}

/// Files with their bytes, and folders (`None`), by path.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, Option<Arc<Vec<u8>>>>);

impl Tree {
    /// Equal trees have equal ones.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }

    /// The bytes of a file.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        self.0.get(path)?.as_ref().map(|bytes| bytes.as_slice())
    }

    /// Makes it so below `root`.
    #[allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]
    pub fn write(&self, root: &Path) {
        for (path, node) in &self.0 {
            let path = root.join(path);
            match node {
                None => std::fs::create_dir(&path).expect("a new folder"),
                Some(bytes) => std::fs::write(&path, &**bytes).expect("a new file"),
            }
        }
    }
}

#[test]
fn the_disk_forgets_what_was_not_synced_and_only_that() {
    let path = |name: &str| name.to_string();
    let mut disk = Disk::default();
    let names = |disk: &Disk| {
        let tree = disk.survivors(&mut |_| false, &mut || Content::Synced);
        tree.0.keys().cloned().collect::<Vec<_>>().join(" ")
    };
    disk.apply(&Op::Mkdir(path("d")));
    disk.apply(&Op::Create(path("d/f#1")));
    disk.apply(&Op::Write(path("d/f#1"), 0, b"abcd".to_vec()));
    let torn = disk.survivors(&mut |_| true, &mut || Content::Torn);
    assert_eq!(torn.file("d/f#1"), Some(&b"ab"[..]));
    disk.apply(&Op::Sync(path("d/f#1")));
    let tree = disk.survivors(&mut |_| true, &mut || Content::Synced);
    assert_eq!(tree.file("d/f#1"), Some(&b"abcd"[..]));
    disk.apply(&Op::Link(path("d/f#1"), path("d/f")));
    disk.apply(&Op::Unlink(path("d/f#1")));
    disk.apply(&Op::SyncDir(path("d")));
    assert_eq!(names(&disk), "", "the folder itself has no durable name yet");
    disk.apply(&Op::SyncDir(path("")));
    assert_eq!(names(&disk), "d d/f");
    disk.apply(&Op::Unlink(path("d/f")));
    assert_eq!(names(&disk), "d d/f", "a delete that was not synced comes back");
}
