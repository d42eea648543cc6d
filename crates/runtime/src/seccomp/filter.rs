//! From rules to the program that the kernel runs at each system call.
//!
//! For each kind of machine: what has conditions is compared one by one; all else by its number, of which neighbours with
//! the same end are one comparison.
//!
//! Source: seccomp(2), "Filters"; kernel `Documentation/networking/filter.rst`; the numbers are the crate's `syscalls`.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;
use sys::seccomp::Instruction;

use super::{Action, Argument, ENOSYS, EPERM, Operator, Seccomp};
use crate::{Error, Result};

/// A kind of machine whose programs run here.
struct Machine {
    /// As config.json has it.
    name: &'static str,
    /// `AUDIT_ARCH_*` of the kernel.
    audit: u32,
    /// A call's number.
    number: fn(&str) -> Option<u32>,
    names: fn() -> Vec<&'static str>,
}

macro_rules! machine {
    ($name:literal, $audit:literal, $table:ident) => {
        Machine {
            name: $name,
            audit: $audit,
            number: |name| {
                let known = name.parse::<syscalls::$table::Sysno>();
                let known = known.or_else(|_| format!("r#{name}").parse()).ok()?;
                u32::try_from(known.id()).ok()
            },
            // A name that is a word of Rust has a mark.
            names: || {
                let names = syscalls::$table::Sysno::iter().map(|known| known.name());
                names.map(|name| name.strip_prefix("r#").unwrap_or(name)).collect()
            },
        }
    };
}

/// This machine as Docker has it.
#[cfg(target_arch = "x86_64")]
pub(super) const HERE: &str = "amd64";
#[cfg(target_arch = "x86_64")]
const MACHINES: [Machine; 2] = [
    machine!("SCMP_ARCH_X86_64", 0xc000_003e, x86_64),
    machine!("SCMP_ARCH_X86", 0x4000_0003, x86),
];
#[cfg(target_arch = "aarch64")]
pub(super) const HERE: &str = "arm64";
#[cfg(target_arch = "aarch64")]
const MACHINES: [Machine; 2] = [
    machine!("SCMP_ARCH_AARCH64", 0xc000_00b7, aarch64),
    machine!("SCMP_ARCH_ARM", 0x4000_0028, arm),
];

/// The names of all calls of this machine and of those whose programs it runs.
pub(super) fn names() -> BTreeSet<&'static str> {
    MACHINES.iter().flat_map(|machine| (machine.names)()).collect()
}

/// The same machines by name.
pub(super) fn architectures() -> Vec<String> {
    MACHINES.iter().map(|machine| machine.name.to_owned()).collect()
}

/// Puts this thread, and all that it starts, under the filter.
///
/// # Errors
/// [`Error::Step`]: the filter asks for what there is not, or the kernel does not take it.
pub(crate) fn install(filter: &Seccomp) -> Result<()> {
    let fail = |at: &str, e| Error::step("filter the system calls of", at, e);
    let program =
        program(filter).map_err(|_| fail("the container, by what is no filter", Errno::INVAL))?;
    let flags = filter.flags.iter().map(|name| flag(name)).try_fold(0, |all, one| Some(all | one?));
    let flags = flags.ok_or_else(|| fail("the container, with an unknown flag", Errno::INVAL))?;
    sys::seccomp::filter(&program, flags).map_err(|e| fail("the container", e.source))
}

/// Source: `linux/seccomp.h`. `TSYNC` is about other threads, of which there are none.
fn flag(name: &str) -> Option<u32> {
    match name {
        "SECCOMP_FILTER_FLAG_TSYNC" => Some(0),
        "SECCOMP_FILTER_FLAG_LOG" => Some(2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Some(4),
        _ => None,
    }
}

/// Why rules are none.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("a system call has no argument {0}: they are counted from 0 to 5")]
    Argument(u32),
    #[error("the flag {0:?} is not known")]
    Flag(String),
    #[error("{0} is not for this machine: of its architectures none runs here")]
    Architectures(&'static str),
    #[error("it has {0} instructions, and the kernel takes 4096")]
    Long(usize),
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where the kernel has the number of the call, and the machine's kind.
const NUMBER: u32 = 0;
const KIND: u32 = 4;
const ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;

/// To the end of the rule, which is not known yet.
const END: u8 = u8::MAX;

fn op(code: u16, operand: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, operand }
}

fn test(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

/// What the kernel is told.
fn result(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::KillProcess => KILL_PROCESS,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 | errno.unwrap_or(EPERM) & 0xffff,
        Action::Trace => 0x7ff0_0000 | errno.unwrap_or(0) & 0xffff,
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

/// The program of a filter.
pub(super) fn program(filter: &Seccomp) -> std::result::Result<Vec<Instruction>, Wrong> {
    if let Some(unknown) = filter.flags.iter().find(|name| flag(name).is_none()) {
        return Err(Wrong::Flag(unknown.clone()));
    }
    let listed = &filter.architectures;
    let wanted = |machine: &&Machine| listed.is_empty() || listed.iter().any(|n| n == machine.name);
    let mut program = vec![op(LOAD, KIND)];
    for machine in MACHINES.iter().filter(wanted) {
        let block = of_machine(filter, machine)?;
        let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
        program.extend([test(EQUAL, machine.audit, 1, 0), op(JUMP, len)]);
        program.extend(block);
    }
    if program.len() == 1 {
        return Err(Wrong::Architectures("the filter"));
    }
    // A machine that nobody told of has numbers of its own.
    program.push(op(RETURN, KILL_PROCESS));
    match program.len() {
        0..=4096 => Ok(program),
        long => Err(Wrong::Long(long)),
    }
}

fn of_machine(filter: &Seccomp, machine: &Machine) -> std::result::Result<Vec<Instruction>, Wrong> {
    let default = result(filter.default_action, filter.default_errno_ret);
    let mut ends = BTreeMap::new();
    let mut conditional: BTreeMap<u32, Vec<Instruction>> = BTreeMap::new();
    for rule in &filter.syscalls {
        let end = result(rule.action, rule.errno_ret);
        // Names of other machines are none here.
        for number in rule.names.iter().filter_map(|name| (machine.number)(name)) {
            if rule.args.is_empty() {
                ends.entry(number).or_insert(end);
            }
            for condition in conditions(&rule.args) {
                conditional.entry(number).or_default().extend(compare(condition, end)?);
            }
        }
    }
    // A call that is newer than the filter is one that the kernel does not have: programs have another way then. So do
    // crun and runc.
    let last = ends.keys().chain(conditional.keys()).max().copied().unwrap_or(u32::MAX);
    let newer = match filter.default_action {
        Action::Errno => result(Action::Errno, Some(ENOSYS)),
        _ => default,
    };
    let mut block = vec![op(LOAD, NUMBER)];
    for (number, rules) in conditional {
        let otherwise = ends.get(&number).copied().unwrap_or(default);
        let len = u32::try_from(rules.len()).unwrap_or(u32::MAX).saturating_add(1);
        block.extend([test(EQUAL, number, 1, 0), op(JUMP, len)]);
        block.extend(rules);
        block.push(op(RETURN, otherwise));
    }
    // Where what becomes of a number is not what becomes of the one before.
    let mut starts: Vec<(u32, u32)> = Vec::new();
    let mut start = |number, end| {
        if starts.last().is_none_or(|(_, before)| *before != end) {
            starts.push((number, end));
        }
    };
    start(0, ends.get(&0).copied().unwrap_or(default));
    let mut next = 1;
    for (&number, &end) in ends.range(1..) {
        if number > next {
            start(next, default);
        }
        start(number, end);
        next = number.saturating_add(1);
    }
    if next <= last {
        start(next, default);
    }
    start(last.saturating_add(1), newer);
    for (at, (_, end)) in starts.iter().enumerate() {
        if let Some((following, _)) = starts.get(at + 1) {
            block.push(test(NOT_LESS, *following, 1, 0));
        }
        block.push(op(RETURN, *end));
    }
    Ok(block)
}

/// The conditions of which one is to hold: all of a rule's together, but each for itself where two are of the same
/// argument, as crun and runc have it.
fn conditions(args: &[Argument]) -> Vec<&[Argument]> {
    let distinct: BTreeSet<u32> = args.iter().map(|argument| argument.index).collect();
    if args.is_empty() {
        Vec::new()
    } else if distinct.len() == args.len() {
        vec![args]
    } else {
        args.chunks(1).collect()
    }
}

/// Ends with `end` where all of `args` holds, and goes on behind itself otherwise.
fn compare(args: &[Argument], end: u32) -> std::result::Result<Vec<Instruction>, Wrong> {
    let mut code = Vec::new();
    for argument in args {
        if argument.index > 5 {
            return Err(Wrong::Argument(argument.index));
        }
        // Both kinds of machines have the lower half first.
        let at = ARGUMENTS + 8 * argument.index;
        let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
        let (high, low) = halves(argument.value);
        let (load_high, load_low) = (op(LOAD, at + 4), op(LOAD, at));
        match argument.op {
            Operator::Equal => code.extend([
                load_high,
                test(EQUAL, high, 0, END),
                load_low,
                test(EQUAL, low, 0, END),
            ]),
            Operator::NotEqual => code.extend([
                load_high,
                test(EQUAL, high, 0, 2),
                load_low,
                test(EQUAL, low, END, 0),
            ]),
            Operator::MaskedEqual => {
                let (wanted_high, wanted_low) = halves(argument.value_two);
                code.extend([
                    load_high,
                    op(AND, high),
                    test(EQUAL, wanted_high, 0, END),
                    load_low,
                    op(AND, low),
                    test(EQUAL, wanted_low, 0, END),
                ]);
            }
            Operator::Greater | Operator::GreaterOrEqual => {
                let last = if argument.op == Operator::Greater { GREATER } else { NOT_LESS };
                code.extend([
                    load_high,
                    test(GREATER, high, 3, 0),
                    test(EQUAL, high, 0, END),
                    load_low,
                    test(last, low, 0, END),
                ]);
            }
            Operator::Less | Operator::LessOrEqual => {
                let last = if argument.op == Operator::Less { NOT_LESS } else { GREATER };
                code.extend([
                    load_high,
                    test(GREATER, high, END, 0),
                    test(EQUAL, high, 0, 2),
                    load_low,
                    test(last, low, END, 0),
                ]);
            }
        }
    }
    code.push(op(RETURN, end));
    // Six arguments of six instructions at most: one byte holds the way.
    let len = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        let rest = u8::try_from(len - at - 1).unwrap_or(END);
        for way in [&mut instruction.if_true, &mut instruction.if_false] {
            if *way == END {
                *way = rest;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::super::{Rule, standard};
    use super::*;

    /// What the program says of a call, by the rules of classic BPF.
    fn run(program: &[Instruction], audit: u32, number: u32, args: [u64; 6]) -> u32 {
        let load = |at: u32| match at {
            NUMBER => number,
            KIND => audit,
            _ => {
                let value = args[(at as usize - 16) / 8];
                if at.is_multiple_of(8) { value as u32 } else { (value >> 32) as u32 }
            }
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, if_true, if_false, operand } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    a = load(operand);
                    continue;
                }
                AND => {
                    a &= operand;
                    continue;
                }
                JUMP => {
                    at += operand as usize;
                    continue;
                }
                RETURN => return operand,
                EQUAL => a == operand,
                GREATER => a > operand,
                NOT_LESS => a >= operand,
                other => panic!("no instruction {other:#x}"),
            };
            at += usize::from(if holds { if_true } else { if_false });
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const NO: u32 = 0x0005_0001;

    fn here(program: &[Instruction], name: &str, first: u64) -> u32 {
        let number = (MACHINES[0].number)(name).expect("a call");
        run(program, MACHINES[0].audit, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn numbers_are_compared_as_64_bits() {
        let values = [0, 1, 7, 0xffff_ffff, 1 << 32, 7 << 32, (7 << 32) + 7, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let operators: [(Operator, Holds); 6] = [
            (Operator::Equal, |a, b| a == b),
            (Operator::NotEqual, |a, b| a != b),
            (Operator::Less, |a, b| a < b),
            (Operator::LessOrEqual, |a, b| a <= b),
            (Operator::Greater, |a, b| a > b),
            (Operator::GreaterOrEqual, |a, b| a >= b),
        ];
        for (op, holds) in operators {
            for value in values {
                let args = vec![Argument { index: 0, value, value_two: 0, op }];
                let names = vec!["read".to_owned()];
                let rule = Rule { names, action: Action::Allow, args, ..Rule::default() };
                let filter = Seccomp { syscalls: vec![rule], ..Seccomp::default() };
                let program = program(&filter).expect("a program");
                for given in values {
                    let want = if holds(given, value) { ALLOW } else { NO };
                    assert_eq!(here(&program, "read", given), want, "{given} {op:?} {value}");
                }
            }
        }
    }

    #[test]
    fn the_standard_filter_keeps_what_it_keeps() {
        let program = program(&standard(&[])).expect("a program");
        assert!(program.len() < 600, "{} instructions", program.len());
        let new_user = 0x1000_0000;
        for (name, first, want) in [
            ("read", 0, ALLOW),
            ("mount", 0, NO),
            ("clone", 17, ALLOW),
            ("clone", 17 | new_user, NO),
            ("clone3", 0, 0x0005_0026),
            ("personality", 8, ALLOW),
            ("personality", 0x40000, NO),
            ("socket", 2, ALLOW),
            ("socket", 40, NO),
            ("keyctl", 0, NO),
        ] {
            assert_eq!(here(&program, name, first), want, "{name} {first}");
        }
        for machine in &MACHINES {
            for name in (machine.names)() {
                let number = (machine.number)(name).expect("a number");
                let said = run(&program, machine.audit, number, [0; 6]);
                assert!(matches!(said, ALLOW | NO | 0x0005_0026), "{name}: {said:#x}");
            }
            // One that is newer than the filter.
            assert_eq!(run(&program, machine.audit, 5000, [0; 6]), 0x0005_0026);
        }
        assert_eq!(run(&program, 1, 0, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn within_a_project_no_request_changes_it_and_all_others_are_made() {
        let filter = standard(&[]).within_project();
        let program = program(&filter).expect("a program");
        let said = |machine: &Machine, name: &str, request: u64| {
            let number = (machine.number)(name).expect("a call");
            run(&program, machine.audit, number, [3, request, 0, 0, 0, 0])
        };
        for machine in &MACHINES {
            for forbidden in [0x401c_5820, 0x4008_6602, 0x4004_6602] {
                // The kernel cuts what is above.
                for request in [forbidden, forbidden | 1 << 32, forbidden | 0xffff_ffff << 32] {
                    assert_eq!(said(machine, "ioctl", request), NO, "{request:#x}");
                }
                for bit in 0..32 {
                    let other = forbidden ^ 1 << bit;
                    if ![0x401c_5820, 0x4008_6602, 0x4004_6602].contains(&other) {
                        assert_eq!(said(machine, "ioctl", other), ALLOW, "{other:#x}");
                    }
                }
            }
            for request in [0, 0x5401, 0x5413, 0x801c_581f, 0x8008_6601, 0xffff_ffff] {
                assert_eq!(said(machine, "ioctl", request), ALLOW, "{request:#x}");
            }
            assert_ne!(said(machine, "file_setattr", 0), ALLOW);
            assert_eq!(said(machine, "read", 0), ALLOW);
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let argument = Argument { index: 6, value: 0, value_two: 0, op: Operator::Equal };
        let rule = Rule { names: vec!["read".into()], args: vec![argument], ..Rule::default() };
        let wrong = Seccomp { syscalls: vec![rule], ..Seccomp::default() };
        assert!(program(&wrong).expect_err("refused").to_string().contains("argument 6"));
        let elsewhere =
            Seccomp { architectures: vec!["SCMP_ARCH_S390X".into()], ..Seccomp::default() };
        assert!(program(&elsewhere).is_err());
        let flags = Seccomp { flags: vec!["SECCOMP_FILTER_FLAG_NEW".into()], ..Seccomp::default() };
        assert!(program(&flags).is_err());
    }

    #[test]
    fn two_conditions_of_one_argument_are_one_or_the_other() {
        let equal = |value| Argument { index: 0, value, value_two: 0, op: Operator::Equal };
        let names = vec!["read".to_owned()];
        let rule = Rule {
            names,
            action: Action::Allow,
            args: vec![equal(1), equal(2)],
            ..Rule::default()
        };
        let filter = Seccomp { syscalls: vec![rule], ..Seccomp::default() };
        let program = program(&filter).expect("a program");
        assert_eq!([0, 1, 2].map(|first| here(&program, "read", first)), [NO, ALLOW, ALLOW]);
    }
}
