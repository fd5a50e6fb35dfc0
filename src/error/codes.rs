//! A stable code for every message that tidegate ends with, and the page about it (`tidegate explain TG0401`).
//!
//! A code names a class of problems, never a single sentence, and is never used for anything else once it was released.
//! [`super::Error::new`] gives every error the code of its kind (`TG0078` for exit code 78), so that there is no message
//! without one; [`super::Error::coded`] makes it more precise. What is matched exhaustively on the way there (losses, the
//! reasons why a pipeline halts, places in the SQL) does not compile without a code.

use std::fmt;

use super::ErrorKind;

/// The page about a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// One line: lowercase, no full stop.
    pub title: &'static str,
    /// What happened, and why.
    pub happened: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// How it looks.
    pub example: &'static str,
}

macro_rules! codes {
    ($($number:literal $name:ident: $title:literal, $happened:literal, $remedy:literal, $example:literal;)+) => {
        /// See the module.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $name = $number,)+
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The page about it.
            pub fn page(self) -> Page {
                match self {
                    $(Code::$name => Page { title: $title, happened: $happened, remedy: $remedy, example: $example },)+
                }
            }
        }
    };
}

codes! {
    // By kind: what has no code of its own. The number is the exit code.
    1 Failed: "something failed that has no class of its own",
        "An unforeseen failure: of the environment, of a library, or a bug. What was begun is finished by the next run, and \
         nothing is written twice.",
        "Read the lines under `caused by`. Run again; if it fails again in the same way, report it with the output of \
         `tidegate --log debug …`.",
        "the async runtime did not start";
    2 Usage: "the command line is wrong",
        "An argument has no meaning, or does not fit the others or the pipeline. Nothing was read or written.",
        "The message says what was expected; `tidegate COMMAND --help` shows everything.",
        "--trigger `soon` is not a trigger";
    65 Data: "the data broke a rule",
        "Rows of a batch cannot be written as the pipeline says. A batch that stops this way is tried again, with the same \
         rows, at the next run: running again without a change does not help.",
        "Mend the data, or the rule, schema or SQL that does not fit it, and run again.",
        "the dead letters of one batch are larger than 1 GiB";
    66 OffsetsLost: "records that the checkpoint counts on are gone",
        "The source no longer has what comes after the pipeline's position. Going on would lose rows in silence.",
        "Look for the class of loss in the message. `on_data_loss: skip` in the source goes on without them, and keeps on record \
         what was lost.",
        "files/2026-03-16.ndjson is shorter than the checkpoint says";
    69 Unavailable: "a broker or a store did not answer",
        "Something that the run needs could not be reached, also after several tries. Nothing was half written.",
        "Run again later, or let the scheduler do so: this is the one kind of failure that waiting cures.",
        "no broker answered at kafka:9092 after 5 tries in 30s";
    75 Busy: "somebody else is at work",
        "Another runner owns the pipeline, or other writers were faster several times in a row. This process changed nothing.",
        "Wait until the other has finished and run again, or stop one of the two.",
        "another runner owns pipeline `orders`: pid 812 on host etl-1";
    78 Config: "the configuration does not fit what is there",
        "A file, a table, a checkpoint or a store is not what the pipeline needs. Nothing was written; no later try will mend it.",
        "The message says what is wrong and what to type.",
        "table silver.orders and the pipeline disagree about columns";

    // The pipeline file.
    200 PipelineFile: "a problem in the pipeline file",
        "A value is possible in YAML and makes no sense in a pipeline. All problems of the file are shown at once; nothing was \
         run.",
        "Go to the line and column that the message names. `tidegate validate FILE` checks again without a run.",
        "the tables form a cycle: `a` reads `b` reads `a`";
    201 NotYaml: "the file is not YAML that tidegate reads",
        "The text has no structure that could be read: a quote, a bracket or an indentation that does not end, a second document, a \
         value where a key must be.",
        "Repair the place of the caret; what follows it is checked when it can be read.",
        "this is not YAML";
    202 UnknownKey: "a key that means nothing here",
        "Keys that are not known are refused: a misspelt one would be a setting that does not work.",
        "Take the suggestion, or the list of keys under `help`. Every key is in `tidegate schema`.",
        "unknown key `orderby` in `upsert`";
    203 MissingKey: "a key is missing",
        "Something without which the pipeline has no meaning is not said.",
        "Add the key that the message names.",
        "missing key `key` in `upsert`";
    204 WrongValue: "a value of the wrong type or form",
        "A value is not of the type that its key takes, is outside its bounds, or is not one of the words that are known.",
        "The message says what was expected and what was found. Durations are written 30s, sizes 256MB, shares 1%, counts 500_000.",
        "`max_rows` must be a count, not a list";
    205 DuplicateKey: "a key is given twice",
        "YAML readers differ in which of the two counts, so neither does.",
        "Take one of them out.",
        "duplicate key `source`";
    206 Reference: "a reference cannot be filled in",
        "A `${VAR}` is not set, a `${file:…}` cannot be read, or what it holds does not fit on one line. All missing ones are \
         listed at once.",
        "Set the variable where the process starts, or give a default: `${VAR:-default}`.",
        "`KAFKA_BROKERS` is not set";
    207 UnknownTarget: "the file has no such target",
        "`--target` (or TIDEGATE_TARGET) names an overlay that is not under `targets:`.",
        "Take one of the targets that the message lists, or add it to the file.",
        "unknown target `prd`";
    208 UnknownName: "a name that nothing in the file has",
        "A table, a source or a relation of a query is called by a name that is not defined.",
        "Take the suggestion, or define it.",
        "unknown table `bronze.order`";
    209 UnreadableFile: "the file cannot be read",
        "The pipeline or test file is not there, is not text, is empty, or may not be read.",
        "Check the path and its rights. Relative paths in commands start where the command is run.",
        "cannot read the pipeline file: No such file or directory";
    210 KafkaOption: "a client option that is not yours to set",
        "Some settings of the Kafka client carry the promise (auto-commit, offset reset, isolation), others have a key of their own.",
        "Take it out of `options`, or use the key that the message names.",
        "the option `enable.auto.commit` is not yours to set";
    211 NotYet: "a feature that this version does not have",
        "The key is part of the format, and this version cannot do it.",
        "Take it out for now.",
        "`aggregate` is not available in this version";
    220 TestFile: "a problem in a test",
        "A test under `tests:` or in a *.test.yaml cannot be run as it is written.",
        "Go to the line and column; tests name sources, tables and columns of the pipeline.",
        "unknown name `sorce` in a test";

    // SQL.
    300 TableSql: "a problem in a table's SQL",
        "The query does not parse, names what is not there, or does something that would make a batch done again differ \
         (clocks, random numbers). Queries are checked before a row is read.",
        "The caret is in the SQL. `batch` is the rows of the micro-batch; a table's own name is the whole table; lookups go by name. What \
         Polars SQL cannot do, `engine: datafusion` on the table may.",
        "unknown column `amout`";
    301 TableRule: "a problem in a rule or in `delete_when`",
        "The SQL of an expectation or of `delete_when` is not a boolean expression over the columns that the query makes.",
        "Use columns of the query's output, also those that `drop` takes away.",
        "unknown column `qty` in expect.positive_quantity";
    302 TableColumns: "a key, order, group or partition column that is not there",
        "`key`, `order_by`, `drop`, `by` or `partition_by` names a column that the table does not have, or one that cannot serve.",
        "Name a column of the query's output; `refresh` groups must be columns that pass through unchanged.",
        "there is no column `order_dat` to partition by";
    303 TableShape: "what a table reads and how it is written do not fit",
        "`from` and `write` of a table exclude what its SQL does.",
        "The message names the way that works, such as `refresh` for aggregates.",
        "an append table cannot aggregate";
    304 Lookup: "a lookup cannot be read",
        "The static side of a join is not there, or is not the kind of file it should be.",
        "Create it, or correct its path under `lookups:`. Relative paths start at the project root.",
        "lookup `stores`: there is no file";
    310 Query: "`tidegate query` cannot run the query",
        "The SQL does not parse, or names a table or column that is not there. The dialect is DataFusion's.",
        "`tidegate query FILE --tables` lists tables and columns, `DESCRIBE silver.orders` types.",
        "the query cannot be run: table 'silver.ordrs' not found";
    311 QueryWrites: "`tidegate query` only reads",
        "The statement would change something. Nothing was run.",
        "Tables are written by pipelines. To take out rows by hand, use an engine that writes Delta; the next run says what others \
         changed.",
        "this is not a query: only SELECT, SHOW TABLES and DESCRIBE are run";

    // Kafka.
    401 Expired: "records expired before they were read",
        "The topic's retention deleted records after the checkpoint's position: the pipeline stood still for too long, or the \
         retention is too short.",
        "If another system still has them, produce them again first. To go on without them: `on_data_loss: skip`; plan, commit record \
         and `tidegate status` keep what was skipped. `tidegate lag` shows beforehand how long unread records stay.",
        "50 records of orders.v1/0 have expired: the checkpoint stands at 100, the earliest is 150";
    402 Shrunk: "a partition ends before the checkpoint",
        "The partition holds fewer records than were read, and the brokers are too old to say whether it is the same topic.",
        "Find out whether the topic was deleted and made again. New data under an old name needs a new pipeline name or checkpoint \
         folder; `on_data_loss: skip` reads what is there now from its earliest record.",
        "orders.v1/2 ends at 3 but the checkpoint stands at 5: it was deleted and made anew, or truncated";
    403 Truncated: "a partition lost its newest records",
        "The topic is the same and ends before the position: an unclean leader election, or a disk restored from a copy. The tables hold \
         rows that the topic no longer has.",
        "Ask whoever runs the cluster. `on_data_loss: skip` goes on at the end of what is there now.",
        "orders.v1/0 was truncated: it ends at 30 but the checkpoint stands at 100, in the same topic";
    404 Recreated: "the topic was deleted and made again",
        "A topic of the same name has another id: its offsets are those of other records.",
        "If it holds other data, give the pipeline a new name or checkpoint folder. To read it into the same tables from its \
         earliest record: `on_data_loss: skip`.",
        "topic orders.v1 was deleted and created again: the checkpoint stands at 100 of orders.v1/0 in the old one …";
    405 PartitionGone: "a partition is gone",
        "The topic has fewer partitions than were read.",
        "If it was removed by mistake, restore it. To go on without it: `on_data_loss: skip`.",
        "orders.v1/3 no longer exists, the checkpoint stands at 5 in it";
    406 TopicGone: "a topic is gone",
        "A topic that was read does not exist any more.",
        "If it was removed for good, take it out of `topics`, or set `on_data_loss: skip`.",
        "topic orders.v1 no longer exists, the checkpoint stands at 50 of orders.v1/0";
    410 TopicMissing: "a topic that was never there",
        "No topic has the name, or matches the pattern, in the file. tidegate never creates topics.",
        "Take the suggestion, or create the topic. The message lists the topics that this client may see.",
        "topic `order.v1` does not exist";
    411 BrokerRefuses: "the broker refuses this client",
        "User name, password, mechanism or access rules do not fit.",
        "Check `security`, and that the user may READ topic and group and DESCRIBE the topic.",
        "the broker at kafka:9093 refused this client";

    // Checkpoint and tables.
    501 LogGap: "plans and commit records do not follow each other",
        "The checkpoint folder lacks objects, or was mixed with another one.",
        "`tidegate checkpoint verify FILE` says what is missing; restore it from a backup, or `tidegate checkpoint rebuild FILE`.",
        "the checkpoint has a plan of batch 7 and a commit record of batch 5";
    502 OtherPipeline: "the checkpoint belongs to another pipeline",
        "Two pipelines share a name or a folder, or the pipeline was renamed.",
        "Point `checkpoints` at this pipeline's own folder, or restore its `name`.",
        "the checkpoint belongs to pipeline `orders-old`";
    503 CheckpointLost: "tables remember a checkpoint that is not there",
        "The tables carry batches of this pipeline, and the checkpoint folder is empty. Starting over would write every row twice.",
        "Restore the folder from a backup, or `tidegate checkpoint rebuild FILE`: the tables know where they stand.",
        "table silver.orders carries batches, but there is no checkpoint";
    504 ForeignTable: "a table that this pipeline did not make",
        "The folder of a table holds a Delta table of another pipeline or program.",
        "Give the table another name, or the pipeline another lake.",
        "table silver.orders was made by pipeline `shop`";
    505 TableAhead: "a table is ahead of the checkpoint",
        "The table carries a batch that the log has not planned: the checkpoint folder is older than the lake.",
        "Restore the newer checkpoint, or `tidegate checkpoint rebuild FILE`.",
        "table silver.orders carries batch 9, the checkpoint ends at 7";
    506 TableReplaced: "a table was replaced",
        "The table that is there is not the one that carried the pipeline's batches.",
        "Bring back the table that was there; or, to start over, move lake and checkpoint away together.",
        "table silver.orders was replaced by another one";
    507 TableBehind: "a table lacks batches that are done",
        "The log says that batches are done which the table does not carry: an old copy of the table.",
        "Bring the table's newer files back. The message says which batches are missing.",
        "table silver.orders carries batch 5, batches up to 7 are done";
    508 TableLost: "a table is gone",
        "A table that carried batches was dropped, or is not where it was.",
        "Bring it back, or correct `lake`.",
        "table silver.orders is gone, batches up to 7 were applied to it";
    509 MemoryLost: "the memory of deletes is gone",
        "An upsert table remembers deleted keys in `<lake>/_tidegate/deletes`; without it late rows would revive them.",
        "Bring the folder back from a backup.",
        "the memory of deletes of silver.orders is gone or went back";
    510 TableRestored: "a table was restored to an earlier version",
        "Somebody ran RESTORE: rows of batches that are done are missing.",
        "Restore the version that the message names; to read again from an earlier point, use `tidegate offsets rewind`.",
        "table silver.orders was restored from version 12 to 9";
    511 OtherPlan: "a table carries another batch of the same number",
        "Table and checkpoint come from two different histories of the pipeline.",
        "Bring back the checkpoint that belongs to the lake, or `tidegate checkpoint rebuild FILE`.",
        "table silver.orders carries another batch 7 than the checkpoint has planned";
    512 ChangedMidway: "the file was changed while a batch was half done",
        "Some tables carry the batch and others do not: they must all get it by the same rules.",
        "Put the old file back, run once, then change it.",
        "batch 7 is in bronze.orders and not in silver.orders, and the pipeline file was changed";
    513 MeaningChanged: "the meaning of stored rows was changed",
        "`key`, `order_by`, `by` and the like give stored rows their meaning; they cannot change under the rows.",
        "Put it back, or give the table another name: a new table is computed anew.",
        "silver.orders was written by key=order_id and is now to be written by key=order_id,line";
    514 StateLost: "what a table remembers is gone or damaged",
        "Open windows, keys and waiting rows are kept in `<lake>/_tidegate/state`; without them the next batch would count wrong.",
        "Bring the file back from a backup, or compute the table again from what it reads: `tidegate rebuild FILE --table T`.",
        "the state of gold.orders_per_minute is gone";
    520 CheckpointDamaged: "a checkpoint object cannot be believed",
        "The object is cut off, was changed, or belongs to another checkpoint: its checksum or identity does not fit.",
        "Restore it from a backup, or `tidegate checkpoint rebuild FILE`, which moves damaged objects aside.",
        "checkpoint object …/offsets/00000000000000000007.json is damaged: its checksum does not fit";
    521 NoSuchBatch: "the checkpoint does not hold that batch",
        "The batch was never run, is not done, or is older than the hundred that are kept.",
        "`tidegate history FILE --limit 200` lists the batches there are.",
        "the checkpoint holds no batch 900";

    // Data.
    601 RuleFailed: "rows broke a rule with `else: fail`",
        "The pipeline says that such rows must stop it. Nothing of the batch was written.",
        "Mend the data at its origin, or change the rule: `quarantine` sets such rows aside.",
        "3 rows of silver.orders break the rule positive_quantity";
    602 Budget: "too many dead letters",
        "The share of rows set aside is above `dead_letters.fail_above`: more likely a wrong schema than bad rows. Nothing of the batch was \
         written.",
        "Look at the rows (`tidegate query FILE \"SELECT rule, error FROM dlq.orders\"` shows earlier ones), mend schema or rules, or \
         raise the limit.",
        "900 of 1000 rows (90.0 %) would be dead letters, above the limit of 5.0 %";
    603 NoPlaceAside: "a bad row, and dead letters are off",
        "A row must be set aside and `dead_letters: off` leaves no place for it.",
        "Turn dead letters on, or mend the data.",
        "2 bad rows, and `dead_letters` is off";
    604 SqlOnRows: "the SQL failed on the rows of a batch",
        "The query is right and a value does not fit it: a cast, a division, an overflow.",
        "TRY_CAST makes null of a value that cannot be cast; an expectation can then set the row aside.",
        "the SQL failed on this batch's rows";
    605 StateTooLarge: "a table would remember more than it may",
        "Open windows, keys within `dedupe`, or rows waiting in a `join` need more memory than `state: {limit: …}` allows. The batch \
         was refused before anything was written.",
        "Raise the limit if the machine has the memory; else shorten `delay`, `within` or the window, or group by fewer values.",
        "the state of gold.sessions needs 1.2 GB, its limit is 1 GB";

    // Storage.
    701 DiskFull: "the disk is full",
        "A write found no space. Nothing is half written.",
        "Free some space, or `tidegate vacuum FILE`; the next run finishes what was begun.",
        "cannot write the plan of batch 7: disk full";
    702 ReadOnlyStorage: "the file system is read-only",
        "A write was refused by the file system.",
        "Mount it read-write, then run again.",
        "cannot write the checkpoint: the file system is read-only";
    703 PermissionDenied: "no right to read or write there",
        "The store or the file system refuses the user that runs tidegate.",
        "Give it the right to read, write, list and delete in lake and checkpoints.",
        "cannot read the table's log: permission denied";
    704 Credentials: "the store does not accept the credentials",
        "Keys in the environment are missing, wrong or expired.",
        "Check the variables of the store (AWS_*, GOOGLE_*, AZURE_*) where the process starts.",
        "cannot write the checkpoint: the store does not accept the credentials";
    705 StorageNotFound: "something is not in the store",
        "A bucket, a folder or a file that was counted on is not there.",
        "Check `lake` and `checkpoints`; create the bucket.",
        "cannot read a data file: not found";
    706 StorageUnreachable: "storage failed or is unreachable",
        "The store did not answer, or answered with a failure of its own.",
        "Run again; nothing was half written.",
        "cannot read the checkpoint: storage failed or is unreachable";
    707 StoreCannot: "the store lacks what the promise needs",
        "Without put-if-absent two runners could both believe that they own a batch.",
        "Use local disks with hard links, S3 with If-None-Match, GCS or Azure.",
        "cannot write the checkpoint: the store cannot do that";
    708 TableUnreadable: "the log of a table cannot be read",
        "An entry of `_delta_log` is missing, empty or broken, or needs a feature that this reader does not have.",
        "Bring the entry back from a backup, or take the feature away. `tidegate checkpoint verify FILE` shows what log and tables hold.",
        "the log of a table cannot be read";

    // Two runners.
    801 LockHeld: "another process on this host runs the pipeline",
        "The lock file of the checkpoint is held. This process read and wrote nothing.",
        "Wait or stop the other; `tidegate status FILE` names it. In a scheduler, let runs not overlap.",
        "another runner owns pipeline `orders`: pid 812 on host etl-1";
    802 PlanTaken: "another runner planned the batch first",
        "Two runners, probably on two hosts, work on one checkpoint. The one that comes second stops.",
        "Stop one of the two for good.",
        "another runner owns pipeline `orders`: batch 7 was planned by pid 812 on host etl-1 at …";
}

impl Code {
    /// The code of errors that say no more than their kind.
    pub fn of_kind(kind: ErrorKind) -> Code {
        match kind {
            ErrorKind::Failed => Code::Failed,
            ErrorKind::Usage => Code::Usage,
            ErrorKind::Data => Code::Data,
            ErrorKind::OffsetsLost => Code::OffsetsLost,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Busy => Code::Busy,
            ErrorKind::Config => Code::Config,
        }
    }

    /// What a person typed: `TG0401`, `tg401`, `0401`, `401`.
    pub fn parse(text: &str) -> Option<Code> {
        let text = text.trim().to_ascii_uppercase();
        let number: u16 = text.strip_prefix("TG").unwrap_or(&text).parse().ok()?;
        Code::ALL.iter().copied().find(|code| *code as u16 == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TG{:04}", *self as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_explained() {
        assert!(Code::ALL.windows(2).all(|pair| (pair[0] as u16) < pair[1] as u16));
        for code in Code::ALL {
            let page = code.page();
            for text in [page.title, page.happened, page.remedy, page.example] {
                assert!(text.len() > 8 && text.trim() == text && !text.contains("  "), "{code}: {text:?}");
            }
            assert!(page.happened.ends_with('.') && !page.title.ends_with('.'), "{code}");
        }
    }

    #[test]
    fn the_code_of_a_kind_is_its_exit_code() {
        use ErrorKind::*;
        for kind in [Failed, Usage, Data, OffsetsLost, Unavailable, Busy, Config] {
            assert_eq!(Code::of_kind(kind) as u16, u16::from(kind.exit_code()));
        }
    }

    #[test]
    fn people_type_codes_in_many_ways() {
        for text in ["TG0401", "tg0401", "401", " 0401 "] {
            assert_eq!(Code::parse(text), Some(Code::Expired), "{text}");
        }
        assert_eq!((Code::parse("TG9999"), Code::parse("orders"), Code::parse("")), (None, None, None));
        assert_eq!(Code::Expired.to_string(), "TG0401");
    }
}
