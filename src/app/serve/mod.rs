//! `tidegate serve`: many pipelines in one process, each by its own trigger, none in the way of another.
//!
//! What happens when is decided by [`crate::model::supervise`]; here it is done: runs are tasks, files are read, signals
//! are heard.

mod board;
mod folder;
mod gate;
mod http;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};

use self::board::{Board, Speaker, json_of};
use self::folder::{Files, Stamp, Version, WasRead};
use self::gate::Room;
use self::worker::{Job, Opened, Ran};
use super::output::{counted, file_of};
use super::{Failure, Outcome, run};
use crate::cli::{Global, ServeArgs};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::supervise::{Action, Ending, Event, State, Supervisor};
use crate::model::trigger::{Schedule, Trigger};
use crate::runner::clock::{Clock, SystemClock, until};
use crate::units;

/// No longer asleep than this: clocks are set, machines sleep, and files that failed are looked at again.
const NAP: Duration = Duration::from_secs(5);

/// Batches under way for each core: about half of a small batch's time is waiting for storage.
const PER_CORE: usize = 2;

/// All batches under way hold at most this share of the memory as keys and values. Decoded, shaped and written they take
/// several times as much.
const SHARE_OF_MEMORY: u64 = 16;

pub(super) async fn serve(global: &Global, args: &ServeArgs) -> Result<Outcome, Failure> {
    let started = Instant::now();
    // First of all: a signal that comes before it is heard would end the process as a crash does.
    let stop = run::stop_signal()?;
    let hangup = signal(SignalKind::hangup()).context(ErrorKind::Failed, "SIGHUP cannot be listened to")?;
    crate::source::kafka::share_questions();
    let mut server = Server::new(global, args)?;
    // An address that is taken is told before anything runs; whoever asks before that is answered once all is read.
    let listener = match args.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    server.load_first()?;
    server.answer(listener);
    server.run(stop, hangup).await?;
    // Closing many Kafka clients takes seconds. Nothing is under way: the end of the process closes them.
    std::mem::forget(std::mem::take(&mut server.slots));
    Ok(server.board.outcome(started.elapsed().as_millis() as u64))
}

/// The process's pipelines.
struct Server {
    paths: Vec<PathBuf>,
    target: Option<String>,
    supervisor: Supervisor,
    /// The versions that may have to be run.
    versions: BTreeMap<(String, String), Version>,
    slots: BTreeMap<String, Slot>,
    tasks: JoinSet<Ran>,
    running: HashMap<Id, String>,
    /// Files that are being read. Checking their SQL, or storage of a lookup that is away, must not hold up the others.
    reading: JoinSet<WasRead>,
    /// SIGHUP came while files were read.
    read_again: bool,
    /// Files that could not be used, or whose pipelines failed: a change of theirs is taken without being asked.
    failed: BTreeSet<String>,
    /// Files as they were when they were read last.
    stamps: BTreeMap<String, Stamp>,
    looked: Instant,
    board: Board,
    speaker: Speaker,
    room: Room,
}

/// A pipeline that is open, or running.
struct Slot {
    stop: watch::Sender<bool>,
    opened: Option<Opened>,
    /// The last run read something.
    had_news: bool,
}

impl Server {
    fn new(global: &Global, args: &ServeArgs) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let batches = args.max_concurrent.map_or(PER_CORE * cores, usize::from);
        let in_all = match &args.max_bytes {
            Some(text) => {
                units::size(text).map_err(|refusal| Error::new(ErrorKind::Usage, format!("--max-bytes: {refusal}")))?
            }
            None => memory().map_or(u64::MAX, |memory| memory / SHARE_OF_MEMORY),
        };
        Ok(Server {
            paths: args.files.clone(),
            target: global.target.clone(),
            supervisor: Supervisor::default(),
            versions: BTreeMap::new(),
            slots: BTreeMap::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            reading: JoinSet::new(),
            read_again: false,
            failed: BTreeSet::new(),
            stamps: BTreeMap::new(),
            looked: Instant::now(),
            board: Board::default(),
            speaker: Speaker::new(global),
            room: Room {
                batches: Arc::new(Semaphore::new(batches)),
                max_bytes: (in_all / batches as u64).max(1_000_000),
            },
        })
    }

    /// One bad file does not keep the others from running; nothing but bad files does.
    fn load_first(&mut self) -> Result<()> {
        let files = folder::read(&self.paths, self.target.as_deref())?;
        let (sound, broken) = (files.sound.len(), files.broken.len());
        let event = self.enter(files);
        if sound == 0 {
            return Err(Error::config(format!("none of {} can be used", counted(broken as u64, "file", "files")))
                .help("nothing was run; mend what is reported above"));
        }
        for version in self.versions.values() {
            let spec = &version.loaded.spec;
            let when = match &spec.trigger {
                Schedule::Cron(cron) => format!("at `{cron}`, {}", spec.timezone),
                Schedule::Trigger(Trigger::ProcessingTime(interval)) => format!("every {interval:?}"),
                Schedule::Trigger(trigger) => format!("{}: once, now, and not again", trigger.as_str()),
            };
            self.speaker.say(&format!("{}: {when}", spec.name));
        }
        let now = SystemClock.now();
        let actions = self.supervisor.decide(now, event);
        self.act(actions);
        Ok(())
    }

    fn answer(&self, listener: Option<TcpListener>) {
        if let Some(listener) = listener {
            tokio::spawn(http::answer_all(listener, self.board.clone()));
        }
    }

    async fn run(&mut self, mut stop: watch::Receiver<bool>, mut hangup: Signal) -> Result<()> {
        let mut is_stopping = false;
        while !self.supervisor.has_stopped() {
            let pause = self.supervisor.wakes_at().map_or(NAP, |at| until(SystemClock.now(), at).min(NAP));
            let pause = if is_stopping { NAP } else { pause };
            let event = tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                Some(read) = self.reading.join_next() => self.was_read(read),
                _ = stop.wait_for(|stop| *stop), if !is_stopping => {
                    is_stopping = true;
                    Some(Event::Stopped)
                }
                _ = hangup.recv() => {
                    self.read_again = true;
                    None
                }
                _ = tokio::time::sleep(pause) => Some(Event::Woke),
            };
            if !is_stopping {
                self.read_what_changed();
            }
            let Some(event) = event else { continue };
            let resting = match &event {
                Event::Ended { key, .. } => Some(key.clone()),
                _ => None,
            };
            let actions = self.supervisor.decide(SystemClock.now(), event);
            self.act(actions);
            let supervisor = &self.supervisor;
            self.versions.retain(|(key, revision), _| supervisor.may_start(key, revision));
            if let Some(key) = resting {
                self.rest(&key).await;
            }
            self.board.show(&self.supervisor);
        }
        Ok(())
    }

    /// Starts to read files: all of them when SIGHUP asked for it, those that failed when they have another stamp.
    fn read_what_changed(&mut self) {
        if !self.reading.is_empty() {
            return;
        }
        if std::mem::take(&mut self.read_again) {
            self.speaker.say("reading the files again");
            let known: BTreeSet<(String, String)> = self.versions.keys().cloned().collect();
            self.reading.spawn(folder::read_again(self.paths.clone(), self.target.clone(), known));
        } else if self.looked.elapsed() >= NAP {
            self.looked = Instant::now();
            for key in &self.failed {
                let stamp = folder::stamp(key);
                if stamp.is_some() && self.stamps.get(key) != Some(&stamp) {
                    self.stamps.insert(key.clone(), stamp);
                    self.reading.spawn(folder::read_one(key.clone(), self.target.clone()));
                }
            }
        }
    }

    fn was_read(&mut self, read: Result<WasRead, JoinError>) -> Option<Event> {
        match read {
            Ok(WasRead::All(Ok(files))) => Some(self.enter(files)),
            Ok(WasRead::All(Err(error))) => {
                let next = "the files were not taken; everything goes on as before";
                let failure = Failure::from(error);
                self.speaker.tell("serve", &failure, next);
                self.board.broken("the files together", json_of(&failure));
                None
            }
            Ok(WasRead::One(key, Err(failure))) => {
                self.tell_broken(&key, &failure);
                None
            }
            Ok(WasRead::One(key, Ok(version))) => {
                let name = version.loaded.spec.name.clone();
                if let Some(other) = self.board.other_of(&name, &key) {
                    let message = format!("{key} names its pipeline `{name}`, which is the name of {other}");
                    self.speaker.tell(&key, &Error::config(message).into(), "it was not taken");
                    return None;
                }
                self.speaker.say(&format!("{name}: {key} was changed"));
                let offer = version.offer.clone();
                self.keep(*version);
                Some(Event::Changed(offer))
            }
            Err(panic) => {
                let error = Error::failed("reading the files panicked: a fault of tidegate's own").caused_by(panic);
                self.speaker.tell("serve", &error.into(), "everything goes on as before");
                None
            }
        }
    }

    /// Takes in what was read; broken files are told of and watched.
    fn enter(&mut self, files: Files) -> Event {
        for (key, (failure, stamp)) in &files.broken {
            self.tell_broken(key, failure);
            self.failed.insert(key.clone());
            self.stamps.insert(key.clone(), *stamp);
        }
        let broken: BTreeSet<String> = files.broken.into_keys().collect();
        let mut offers = Vec::new();
        for version in files.sound.into_values() {
            offers.push(version.offer.clone());
            self.keep(version);
        }
        self.board.retain_broken(|key| broken.contains(key));
        Event::Reloaded { offers, broken }
    }

    /// Keeps a version to be run, and gives its pipeline a line on the board.
    fn keep(&mut self, version: Version) {
        let key = version.offer.key.clone();
        let name = version.loaded.spec.name.clone();
        self.failed.remove(&key);
        self.stamps.insert(key.clone(), version.stamp);
        self.board.enter(&key, &name);
        self.versions.insert((key, version.offer.revision.clone()), version);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { key, revision, trigger } => self.start(key, revision, trigger),
                Action::Stop { key } => {
                    if let Some(slot) = self.slots.get(&key) {
                        slot.stop.send_replace(true);
                    }
                }
                Action::Close { key } => {
                    if let Some(opened) = self.slots.remove(&key).and_then(|slot| slot.opened) {
                        opened.close();
                    }
                    let is_gone = !self.supervisor.pipelines().contains_key(&key);
                    if is_gone && let Some(name) = self.board.remove(&key) {
                        self.failed.remove(&key);
                        self.speaker.say(&format!("{name}: {key} is gone, and it was stopped"));
                    }
                }
            }
        }
    }

    fn start(&mut self, key: String, revision: String, trigger: Trigger) {
        let Some(version) = self.versions.get(&(key.clone(), revision)) else { return };
        let new = || Slot { stop: watch::Sender::new(false), opened: None, had_news: false };
        let slot = self.slots.entry(key.clone()).or_insert_with(new);
        let job = Job {
            loaded: version.loaded.clone(),
            trigger,
            room: self.room.clone(),
            stop: slot.stop.subscribe(),
            stats: self.board.stats(&key),
            progress: self.speaker.progress,
        };
        let task = self.tasks.spawn(worker::run(slot.opened.take(), job));
        self.running.insert(task.id(), key);
    }

    /// A run ended, however it did.
    fn ended(&mut self, ended: Result<(Id, Ran), JoinError>) -> Option<Event> {
        let (id, ran) = match ended {
            Ok((id, ran)) => (id, ran),
            Err(panic) => {
                let id = panic.id();
                let error = Error::failed("the pipeline's task panicked: a fault of tidegate's own").caused_by(panic);
                (id, Ran { opened: None, outcome: Err(error.into()), had_news: false })
            }
        };
        let key = self.running.remove(&id)?;
        match (ran.opened, self.slots.get_mut(&key)) {
            (Some(opened), Some(slot)) => (slot.opened, slot.had_news) = (Some(opened), ran.had_news),
            _ => drop(self.slots.remove(&key)),
        }
        let ending = match ran.outcome {
            Ok(_) => {
                // A file whose newer version is broken stays watched.
                if self.board.succeeded(&key) {
                    self.failed.remove(&key);
                }
                Ending::Done
            }
            Err(failure) => self.failed(&key, failure),
        };
        Some(Event::Ended { key, ending })
    }

    fn failed(&mut self, key: &str, failure: Failure) -> Ending {
        let ending = worker::ending(&failure);
        let failure = match failure {
            Failure::Error(error) => {
                Failure::Error(Box::new(error.naming(&file_of(Path::new(key), self.target.as_deref()))))
            }
            report => report,
        };
        let next = match ending {
            Ending::Permanent => "it is left alone until its file changes or SIGHUP comes; the others go on",
            _ => "it is tried again after a pause; the others go on",
        };
        self.failed.insert(key.to_string());
        let name = self.board.failed(key, json_of(&failure));
        self.speaker.tell(&name, &failure, next);
        ending
    }

    /// Between two runs a pipeline keeps open only what the time until the next one is worth.
    async fn rest(&mut self, key: &str) {
        let now = SystemClock.now();
        let pipelines = self.supervisor.pipelines();
        let pause = match pipelines.get(key).map(|pipeline| pipeline.state) {
            Some(State::Waiting { until: at }) => until(now, at),
            Some(State::Running) => return,
            _ => Duration::MAX,
        };
        let count = pipelines.len();
        if let Some(slot) = self.slots.get_mut(key)
            && let Some(opened) = slot.opened.take()
        {
            slot.opened = opened.rest(pause, slot.had_news, count).await;
        }
    }

    fn tell_broken(&self, key: &str, failure: &Failure) {
        let runs = self.supervisor.pipelines().contains_key(key);
        let next = if runs { "its old version goes on" } else { "it does not run until the file is mended" };
        self.speaker.tell(key, failure, next);
        self.board.broken(key, json_of(failure));
    }
}

/// Memory that this process may use: its control group's limit, or the machine's.
fn memory() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let total = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = total.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    Some(limit.map_or(total, |limit| limit.min(total)))
}
