//! Durations, sizes, counts and percents as people write them.
