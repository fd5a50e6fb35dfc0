//! The fail points of a test build: what was ordered in the environment, and carrying it out.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// What happens at a point. See the table of the parent module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// Nothing was done.
    Error,
    /// It was done, and nobody knows.
    Lost,
    /// It was done twice, and the second reply is what is heard.
    Resent,
    /// It will be done when nobody expects it any more.
    Late(Duration),
    /// A listing that is not of one moment.
    Gap,
    /// No space.
    Full,
    /// It takes longer.
    Slow(Duration),
    /// Half of it, then SIGKILL.
    Torn,
    /// Waits for a file.
    Pause(PathBuf),
    /// Left out.
    Skip,
    /// A fault of the program.
    Panic,
}

#[derive(Debug, PartialEq, Eq)]
struct Order {
    /// `None` = any point.
    point: Option<String>,
    /// `None` = every hit.
    hit: Option<u64>,
    action: Action,
}

#[derive(Default)]
struct Hits {
    all: u64,
    by_point: HashMap<String, u64>,
}

struct Armed {
    orders: Vec<Order>,
    trace: Option<Mutex<File>>,
    hits: Mutex<Hits>,
}

fn armed() -> &'static Armed {
    static ARMED: OnceLock<Armed> = OnceLock::new();
    ARMED.get_or_init(|| {
        let text = std::env::var("TIDEGATE_FAIL").unwrap_or_default();
        let orders = parse(&text).unwrap_or_else(|why| {
            eprintln!("TIDEGATE_FAIL={text}: {why}");
            std::process::exit(2);
        });
        let trace = std::env::var_os("TIDEGATE_FAIL_TRACE").map(|path| {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            Mutex::new(file.unwrap_or_else(|cause| {
                eprintln!("TIDEGATE_FAIL_TRACE={}: {cause}", path.to_string_lossy());
                std::process::exit(2);
            }))
        });
        Armed { orders, trace, hits: Mutex::default() }
    })
}

fn parse(text: &str) -> Result<Vec<Order>, String> {
    text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(parse_one).collect()
}

fn parse_one(text: &str) -> Result<Order, String> {
    let (place, action) = text.split_once('=').ok_or(format!("`{text}` is not point@hit=action"))?;
    let (point, hit) = place.split_once('@').ok_or(format!("`{place}` is not point@hit"))?;
    if point != "*" && !super::ALL.contains(&point) {
        return Err(format!("there is no point `{point}`"));
    }
    let hit = match hit {
        "*" => None,
        number => Some(number.parse().map_err(|_| format!("`{number}` is not a number of hits"))?),
    };
    let (word, value) = action.split_once('=').unwrap_or((action, ""));
    let wait = || value.parse().map(Duration::from_millis).map_err(|_| format!("`{value}` is not milliseconds"));
    let action = match word {
        "kill" => Action::Kill,
        "error" => Action::Error,
        "lost" => Action::Lost,
        "resent" => Action::Resent,
        "late" => Action::Late(wait()?),
        "gap" => Action::Gap,
        "full" => Action::Full,
        "slow" => Action::Slow(wait()?),
        "torn" => Action::Torn,
        "pause" => Action::Pause(PathBuf::from(value)),
        "skip" => Action::Skip,
        "panic" => Action::Panic,
        _ => return Err(format!("there is no action `{word}`")),
    };
    Ok(Order { point: (point != "*").then(|| point.to_string()), hit, action })
}

/// Counts a hit and says what was ordered for it.
pub fn arrive(point: &str) -> Option<Action> {
    let armed = armed();
    if armed.orders.is_empty() && armed.trace.is_none() {
        return None;
    }
    let (all, here) = {
        let mut hits = armed.hits.lock().unwrap_or_else(PoisonError::into_inner);
        hits.all += 1;
        let here = hits.by_point.entry(point.to_string()).or_default();
        *here += 1;
        let here = *here;
        (hits.all, here)
    };
    if let Some(trace) = &armed.trace {
        let line = format!("{point}\n");
        let _ = trace.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
    let is_due = |order: &&Order| match &order.point {
        Some(name) => name == point && order.hit.is_none_or(|hit| hit == here),
        None => order.hit.is_none_or(|hit| hit == all),
    };
    armed.orders.iter().find(is_due).map(|order| order.action.clone())
}

/// Carries out what was ordered for this hit of a point of the walk.
pub fn hit(point: &str) -> Result<()> {
    let told = |why: &str| {
        Error::new(ErrorKind::Unavailable, format!("{why} at the fail point `{point}`"))
            .help("this is a test; run again")
    };
    match arrive(point) {
        None | Some(Action::Skip | Action::Gap) => Ok(()),
        Some(Action::Kill | Action::Torn) => die(),
        Some(Action::Error) => Err(told("failed")),
        Some(Action::Full) => Err(told("disk full")),
        Some(Action::Lost | Action::Resent | Action::Late(_)) => Err(told("no answer").maybe_applied()),
        Some(Action::Panic) => panic!("ordered at the fail point `{point}`"),
        Some(Action::Slow(wait)) => {
            std::thread::sleep(wait);
            Ok(())
        }
        Some(Action::Pause(file)) => {
            pause(&file);
            Ok(())
        }
    }
}

/// Whether this hit of the point was ordered to be left out.
pub fn skipped(point: &str) -> bool {
    match arrive(point) {
        Some(Action::Kill | Action::Torn) => die(),
        other => other == Some(Action::Skip),
    }
}

/// Says that the point was reached and blocks until `file` exists.
#[allow(clippy::disallowed_methods, reason = "a signal between test processes needs no durability")]
pub fn pause(file: &Path) {
    let mut reached = file.as_os_str().to_owned();
    reached.push(".reached");
    if let Err(cause) = std::fs::write(&reached, "") {
        eprintln!("{}: {cause}", reached.to_string_lossy());
        std::process::exit(2);
    }
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_on(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

/// Whether local disk is treated as an object store.
pub fn remote() -> bool {
    is_on("TIDEGATE_FAIL_REMOTE")
}

/// Whether data files are uploaded in parts.
pub fn parts() -> bool {
    is_on("TIDEGATE_FAIL_PARTS")
}

/// `usual`, or `small` where rare things are to happen often.
pub fn often<T>(usual: T, small: T) -> T {
    if is_on("TIDEGATE_FAIL_SMALL") { small } else { usual }
}

#[allow(unsafe_code, reason = "kill(2) takes two numbers and has no other precondition")]
unsafe extern "C" {
    safe fn kill(pid: i32, signal: i32) -> i32;
}

/// The end: SIGKILL on this process.
pub fn die() -> ! {
    const SIGKILL: i32 = 9;
    kill(i32::try_from(std::process::id()).unwrap_or_default().max(1), SIGKILL);
    // Not reached: the signal is delivered before the call returns.
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_misspelt_ones_refused() {
        let order = |point: &str, hit, action| Order { point: Some(point.into()), hit, action };
        assert_eq!(
            parse("plan.put@2=kill; log.put@*=slow=50;lock@1=skip").unwrap(),
            [
                order("plan.put", Some(2), Action::Kill),
                order("log.put", None, Action::Slow(Duration::from_millis(50))),
                order("lock", Some(1), Action::Skip),
            ]
        );
        assert_eq!(parse("*@7=torn").unwrap(), [Order { point: None, hit: Some(7), action: Action::Torn }]);
        let pause = parse("apply@1=pause=/tmp/x=y").unwrap();
        assert_eq!(pause, [order("apply", Some(1), Action::Pause("/tmp/x=y".into()))]);
        for wrong in ["plan.put=kill", "plan.put@x=kill", "plann@1=kill", "plan@1=explode", "plan@1=slow=soon"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_two_points_share_a_name() {
        let names: std::collections::BTreeSet<_> = super::super::ALL.iter().collect();
        assert_eq!(names.len(), super::super::ALL.len());
    }
}
