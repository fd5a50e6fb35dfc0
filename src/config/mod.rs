//! From YAML to [`spec::PipelineSpec`], reporting every problem at once.

pub mod env;
pub mod raw;
pub mod report;
pub mod spec;
pub mod yaml;
