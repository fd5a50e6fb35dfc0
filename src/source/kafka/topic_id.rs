//! Topic ids: what tells a topic from another one of the same name. librdkafka answers (`rd_kafka_DescribeTopics`, one
//! Metadata request), the safe API has no such question.
//!
//! # Why this is sound
//!
//! Every object that the C library gives away is owned by one [`Owned`], which frees it once, by the function made for it,
//! also when this code returns early. What the answer contains is borrowed from the event, read while the event lives
//! and copied into Rust strings. Objects are freed before the client, which the caller lends for the whole call. An
//! answer that comes after the time-out finds its queue closed and is dropped by the library, which counts references.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use rdkafka::bindings as c;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::client::Client;
use crate::model::offset::Incarnations;

/// A C object and how it is freed.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// Takes a new object; the C library answers null when it cannot make one.
    fn new(object: *mut T, free: unsafe extern "C" fn(*mut T), what: &str) -> KafkaResult<Self> {
        let object = NonNull::new(object).ok_or_else(|| KafkaError::AdminOpCreation(format!("no {what}")))?;
        Ok(Owned { object, free })
    }

    fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // The only owner, and `free` is the function that its constructor's documentation names.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// The ids of those of `topics` that exist and have one, as `broker` knows them. Empty where the brokers know nothing of
/// ids.
pub fn ask(client: &Client, topics: &[String], broker: i32, timeout: Duration) -> KafkaResult<Incarnations> {
    // A name with a zero byte is no topic's.
    let names: Vec<CString> = topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    if names.is_empty() {
        return Ok(Incarnations::new());
    }
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let milliseconds = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let handle = client.client().native_ptr();
    // `handle` lives as long as `client`. The collection copies the names. Declared in this order so that the event, which
    // may refer to the queue, is freed before it.
    let queue = Owned::new(unsafe { c::rd_kafka_queue_new(handle) }, c::rd_kafka_queue_destroy, "queue")?;
    let collection = Owned::new(
        unsafe { c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) },
        c::rd_kafka_TopicCollection_destroy,
        "list of topics",
    )?;
    let options = Owned::new(
        unsafe { c::rd_kafka_AdminOptions_new(handle, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS) },
        c::rd_kafka_AdminOptions_destroy,
        "options",
    )?;
    // The buffer is as long as is said; what the library writes about a refused value is not needed.
    let mut why = [0 as c_char; 256];
    let (text, length) = (why.as_mut_ptr(), why.len());
    let mut set =
        vec![unsafe { c::rd_kafka_AdminOptions_set_request_timeout(options.get(), milliseconds, text, length) }];
    if broker >= 0 {
        set.push(unsafe { c::rd_kafka_AdminOptions_set_broker(options.get(), broker, text, length) });
    }
    if set.iter().any(|&set| set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR) {
        return Err(KafkaError::AdminOpCreation("an option was refused".into()));
    }
    // Copies what it needs of the collection and the options, and answers on the queue.
    unsafe { c::rd_kafka_DescribeTopics(handle, collection.get(), options.get(), queue.get()) };
    let event = poll(&queue, timeout)?;
    let error = unsafe { c::rd_kafka_event_error(event.get()) };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        let code = RDKafkaErrorCode::from(error);
        return if is_foreign(code) { Ok(Incarnations::new()) } else { Err(KafkaError::MetadataFetch(code)) };
    }
    Ok(read(&event))
}

/// Brokers, and what stands before them, that do not know the question.
fn is_foreign(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion | RDKafkaErrorCode::NotImplemented
    )
}

fn poll(queue: &Owned<c::rd_kafka_queue_t>, timeout: Duration) -> KafkaResult<Owned<c::rd_kafka_event_t>> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX);
        // Null when nothing came in time; an event is ours to free.
        let event = unsafe { c::rd_kafka_queue_poll(queue.get(), milliseconds) };
        if let Some(object) = NonNull::new(event) {
            return Ok(Owned { object, free: c::rd_kafka_event_destroy });
        }
        if left.is_zero() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        }
    }
}

/// Copies the ids out of an answer.
fn read(event: &Owned<c::rd_kafka_event_t>) -> Incarnations {
    let mut ids = Incarnations::new();
    // Null when the event is of another kind.
    let result = unsafe { c::rd_kafka_event_DescribeTopics_result(event.get()) };
    if result.is_null() {
        return ids;
    }
    let mut count = 0;
    let topics = unsafe { c::rd_kafka_DescribeTopics_result_topics(result, &mut count) };
    if topics.is_null() {
        return ids;
    }
    for index in 0..count {
        // The array has `count` elements and lives as long as the event, and so does all that its elements lead to.
        let topic = unsafe { *topics.add(index) };
        if topic.is_null() {
            continue;
        }
        // Null is no error to this function.
        let error = unsafe { c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(topic)) };
        let id = unsafe { c::rd_kafka_TopicDescription_topic_id(topic) };
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || id.is_null() {
            continue;
        }
        let (most, least) =
            unsafe { (c::rd_kafka_Uuid_most_significant_bits(id), c::rd_kafka_Uuid_least_significant_bits(id)) };
        // All zeros is what brokers without ids answer.
        let (name, text) = unsafe { (c::rd_kafka_TopicDescription_name(topic), c::rd_kafka_Uuid_base64str(id)) };
        if (most, least) == (0, 0) || name.is_null() || text.is_null() {
            continue;
        }
        // Both are strings of the C library that end in a zero byte.
        let (name, text) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(text)) };
        // In the alphabet that Kafka's own tools print.
        let text = text.to_string_lossy().replace('+', "-").replace('/', "_");
        ids.insert(name.to_string_lossy().into_owned(), text);
    }
    ids
}
