//! Fail points: the places where tests make a run die, fail, stall or lose a reply.
//!
//! A normal build has none of it: every function here is empty and `make build` proves that the binary does not know the
//! variable. With the feature `failpoints`:
//!
//! ```text
//! TIDEGATE_FAIL="plan.put@2=kill"     at the 2nd hit of the point `plan.put`; `@*` = at every hit; `;` parts several
//! TIDEGATE_FAIL="*@17=kill"           at the 17th hit of any point
//! TIDEGATE_FAIL_TRACE=FILE            one line a hit: the point
//! TIDEGATE_FAIL_REMOTE=1              local disk is treated as an object store, where a lost reply says nothing
//! TIDEGATE_FAIL_SMALL=1               what happens every 50 batches (clean-up, Delta checkpoints) happens every few
//! TIDEGATE_FAIL_PARTS=1               data files are uploaded in parts, however small
//! ```
//!
//! | action | what happens at the point |
//! |---|---|
//! | `kill` | SIGKILL: no destructor, no flush |
//! | `error` | nothing was done, and the caller is told so as the real thing would |
//! | `lost` | it was done, and the caller is told that it failed |
//! | `resent` | it was done, its reply was lost, and the store's client sent it again: the caller hears the second reply |
//! | `late=MS` | the caller is told that it failed; it is done that much later, unless the process has ended |
//! | `gap` | a listing lacks the entry before the newest, as it may beside a writer |
//! | `full` | as `error`: no space left on the device |
//! | `slow=MS` | it takes that much longer |
//! | `torn` | half of the bytes under a temporary name, then SIGKILL |
//! | `pause=FILE` | writes `FILE.reached`, then waits until FILE exists |
//! | `panic` | the walk panics there, as at a fault of the program |
//! | `skip` | left out, where leaving out means something: the lock file, as if on another host |
//!
//! A point `x` of the walk is hit before x is done. Points of the store (`class.operation`) are hit before the request;
//! `class.operation.done` when it was carried out and the reply is not there yet.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{Action, arrive, die, hit, often, parts, pause, remote, skipped};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        $($(#[$doc])* pub const $name: &str = $text;)+
        /// Every point. The crash matrix dies at each of them, or fails.
        pub const ALL: &[&str] = &[$($text),+];
    };
}

points! {
    /// The lock file of one host.
    LOCK = "lock";
    /// The log and the tables are looked at.
    OBSERVE = "observe";
    /// The first position of a source is recorded.
    FIRST_OFFSETS = "first_offsets";
    /// The end of the next batch is chosen.
    BOUND = "bound";
    /// The plan is written.
    PLAN = "plan";
    /// The planned rows are read.
    READ = "read";
    /// The rows are shaped.
    SHAPE = "shape";
    /// A batch is applied to a table.
    APPLY = "apply";
    /// A table is made.
    CREATE = "create";
    /// Deletes are remembered.
    REMEMBER = "remember";
    /// Data files are written, nothing is committed.
    PREPARED = "prepared";
    /// A table carries the batch.
    APPLIED = "applied";
    /// Every table carries the batch; the commit record is written.
    COMMIT = "commit";
    /// The batch is done.
    COMMITTED = "committed";
    /// Old plans and commit records are deleted.
    PRUNE = "prune";
    /// A checkpoint of a Delta log is written.
    DELTA_CHECKPOINT = "delta_checkpoint";
    /// Offsets are copied to where lag tools look.
    ACK = "ack";

    /// `metadata.json` of the log.
    IDENTITY_PUT = "identity.put";
    /// It exists.
    IDENTITY_PUT_DONE = "identity.put.done";
    /// It is read.
    IDENTITY_GET = "identity.get";
    /// First offsets of a source.
    START_PUT = "start.put";
    /// They exist.
    START_PUT_DONE = "start.put.done";
    /// They are read.
    START_GET = "start.get";
    /// A plan.
    PLAN_PUT = "plan.put";
    /// It exists.
    PLAN_PUT_DONE = "plan.put.done";
    /// The newest is read.
    PLAN_GET = "plan.get";
    /// The newest is looked for.
    PLAN_LIST = "plan.list";
    /// An old one is deleted.
    PLAN_DELETE = "plan.delete";
    /// It is gone.
    PLAN_DELETE_DONE = "plan.delete.done";
    /// A commit record.
    COMMIT_PUT = "commit.put";
    /// It exists.
    COMMIT_PUT_DONE = "commit.put.done";
    /// The newest is read.
    COMMIT_GET = "commit.get";
    /// The newest is looked for.
    COMMIT_LIST = "commit.list";
    /// An old one is deleted.
    COMMIT_DELETE = "commit.delete";
    /// It is gone.
    COMMIT_DELETE_DONE = "commit.delete.done";

    /// `_delta_log/N.json` of a table.
    LOG_PUT = "log.put";
    /// It exists.
    LOG_PUT_DONE = "log.put.done";
    /// An entry is read.
    LOG_GET = "log.get";
    /// The newest entry is looked for.
    LOG_LIST = "log.list";
    /// A checkpoint of a table's log.
    SNAPSHOT_PUT = "snapshot.put";
    /// It exists.
    SNAPSHOT_PUT_DONE = "snapshot.put.done";
    /// It is read.
    SNAPSHOT_GET = "snapshot.get";
    /// A data file.
    DATA_PUT = "data.put";
    /// It exists.
    DATA_PUT_DONE = "data.put.done";
    /// An upload in parts is begun.
    DATA_BEGIN = "data.begin";
    /// A part of it.
    DATA_PART = "data.part";
    /// Its end.
    DATA_COMPLETE = "data.complete";
    /// The file exists.
    DATA_COMPLETE_DONE = "data.complete.done";
    /// It is read.
    DATA_GET = "data.get";
    /// Notes of days that are derived again are looked for.
    DATA_LIST = "data.list";
    /// One that no commit names is deleted.
    DATA_DELETE = "data.delete";
    /// It is gone.
    DATA_DELETE_DONE = "data.delete.done";

    /// `_delta_log/N.json` of a memory of deletes.
    MEMORY_LOG_PUT = "memory.log.put";
    /// It exists.
    MEMORY_LOG_PUT_DONE = "memory.log.put.done";
    /// An entry is read.
    MEMORY_LOG_GET = "memory.log.get";
    /// The newest entry is looked for.
    MEMORY_LOG_LIST = "memory.log.list";
    /// A checkpoint of its log.
    MEMORY_SNAPSHOT_PUT = "memory.snapshot.put";
    /// It exists.
    MEMORY_SNAPSHOT_PUT_DONE = "memory.snapshot.put.done";
    /// It is read.
    MEMORY_SNAPSHOT_GET = "memory.snapshot.get";
    /// Remembered deletes.
    MEMORY_DATA_PUT = "memory.data.put";
    /// They exist.
    MEMORY_DATA_PUT_DONE = "memory.data.put.done";
    /// They are read.
    MEMORY_DATA_GET = "memory.data.get";

    /// What a table remembers.
    STATE_PUT = "state.put";
    /// It exists.
    STATE_PUT_DONE = "state.put.done";
    /// It is read.
    STATE_GET = "state.get";
    /// Old ones are looked for.
    STATE_LIST = "state.list";
    /// An old one is deleted.
    STATE_DELETE = "state.delete";
    /// It is gone.
    STATE_DELETE_DONE = "state.delete.done";
}

#[cfg(not(feature = "failpoints"))]
mod off {
    use crate::error::Result;

    /// Nothing ever happens here.
    #[inline(always)]
    pub fn hit(_point: &str) -> Result<()> {
        Ok(())
    }

    /// Nothing is ever left out.
    #[inline(always)]
    pub fn skipped(_point: &str) -> bool {
        false
    }

    /// Local disk is local disk.
    #[inline(always)]
    pub fn remote() -> bool {
        false
    }

    /// As often as the program says.
    #[inline(always)]
    pub fn often<T>(usual: T, _small: T) -> T {
        usual
    }
}

#[cfg(not(feature = "failpoints"))]
pub use off::{hit, often, remote, skipped};
