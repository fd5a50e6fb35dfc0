//! The bugs that the search must find. Each is a flag that the walk or the store looks at in one place, never a copy.

/// One deliberate bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Sabotage {
    SkipTxnCheck,
    FirstTableDecides,
    CommitBeforeApply,
    TrustConsumerGroup,
    ReboundOnReplay,
    ResendOnUnknown,
    NoFencing,
    PlanAfterFirstTable,
    PlanOverwrites,
    CommitOverwrites,
    StartNotRecorded,
    StartOverwrites,
    MemoryAfterTable,
    TakenIsOwn,
    PendingIsDone,
    NoRecheck,
    DecideWhileMoving,
    TablesBeforeLog,
    CreateWithoutCheck,
    PruneTooMuch,
    PruneUnderReader,
    DeadLettersOutside,
    NothingToWriteNoTxn,
    OffsetsFromEnds,
    GoOnAfterUnknown,
}

impl Sabotage {
    /// Every one, with what it does.
    pub const ALL: &[(Sabotage, &str)] = &[
        (Sabotage::SkipTxnCheck, "apply without looking at the table's last batch"),
        (Sabotage::FirstTableDecides, "a batch that the first table has is taken to be in all"),
        (Sabotage::CommitBeforeApply, "commit record before the tables"),
        (Sabotage::TrustConsumerGroup, "continue from the consumer group"),
        (Sabotage::ReboundOnReplay, "choose the range again on replay"),
        (Sabotage::ResendOnUnknown, "send a table commit again after a lost reply"),
        (Sabotage::NoFencing, "table commits without compare-and-swap"),
        (Sabotage::PlanAfterFirstTable, "read and apply before the plan is durable"),
        (Sabotage::PlanOverwrites, "plans overwrite"),
        (Sabotage::CommitOverwrites, "commit records overwrite"),
        (Sabotage::StartNotRecorded, "first offsets are not recorded"),
        (Sabotage::StartOverwrites, "first offsets overwrite"),
        (Sabotage::MemoryAfterTable, "memory of deletes after its table"),
        (Sabotage::TakenIsOwn, "a plan that another made first is ignored"),
        (Sabotage::PendingIsDone, "a plan without a commit record counts as done"),
        (Sabotage::NoRecheck, "decide without looking at the log again"),
        (Sabotage::DecideWhileMoving, "decide although the log moved at every look"),
        (Sabotage::TablesBeforeLog, "look at the tables beside the log, not after it"),
        (Sabotage::CreateWithoutCheck, "no look at the last batch after creating a table"),
        (Sabotage::PruneTooMuch, "clean up the newest plan and commit record too"),
        (Sabotage::PruneUnderReader, "clean up what another has listed and not read yet"),
        (Sabotage::DeadLettersOutside, "dead letters outside the batch's txn"),
        (Sabotage::NothingToWriteNoTxn, "no table commit where a batch changes nothing"),
        (Sabotage::OffsetsFromEnds, "the commit record says the end of the source"),
        (Sabotage::GoOnAfterUnknown, "take a lost reply for success"),
    ];
}
