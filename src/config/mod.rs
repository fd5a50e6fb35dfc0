//! From YAML to [`spec::PipelineSpec`], reporting every problem at once.

pub mod spec;
