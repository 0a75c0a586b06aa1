#!/usr/bin/env bash
# report.timeline: a file that trace viewers open, in which the spans of a thread lie within each other, every step of every rank has
# its parts, and no more steps are than were asked for.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
cat >check.py <<'P'
import collections, json, sys
path, ranks, steps, first, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5].split(",")
events = json.load(open(path))
spans = collections.defaultdict(list)
flights = collections.defaultdict(list)
names = {}
for e in events:
    if e["ph"] == "M":
        names[e["pid"], e.get("tid")] = e["args"]["name"]
    elif e["ph"] == "X":
        spans[e["pid"], e["tid"]].append(e)
    else:
        assert e["ph"] in "be", e
        flights[e["id"], e["name"]].append(e)
assert {n for (p, t), n in names.items() if t is None} == {"rank %d" % r for r in range(ranks)}, names
for (pid, tid), own in spans.items():
    assert (pid, tid) in names
    open_until = []
    for e in sorted(own, key=lambda e: (e["ts"], -e["dur"])):
        while open_until and open_until[-1] <= e["ts"] + 0.002:
            open_until.pop()
        assert not open_until or e["ts"] + e["dur"] <= open_until[-1] + 0.002, ("spans overlap", e)
        open_until.append(e["ts"] + e["dur"])
for pair in flights.values():
    assert [e["ph"] for e in pair] == ["b", "e"] and pair[0]["ts"] <= pair[1]["ts"], pair
for r in range(ranks):
    mine = [e for (p, t), own in spans.items() if p == r for e in own]
    runs = sorted((e["ts"], e["ts"] + e["dur"], e["args"]["number"]) for e in mine if (e["cat"], e["name"]) == ("run", "step"))
    assert [n for _, _, n in runs] == list(range(first, first + steps)), (r, [n for _, _, n in runs])
    for cat, name in (("step", "update"), ("data", "wait for a batch")):
        inside = [e for e in mine if (e["cat"], e["name"]) == (cat, name)]
        assert len(inside) == steps and all(a <= e["ts"] + 0.002 and e["ts"] + e["dur"] <= b + 0.002 for e, (a, b, _) in zip(inside, runs)), (r, name, len(inside))
    assert any(names[r, t] == "loader" for (p, t) in spans if p == r), names
found = {e["cat"] + "/" + e["name"] for e in events if "cat" in e}
assert set(wanted) <= found, set(wanted) - found
print("%d events of %d ranks, %d steps" % (len(events), ranks, steps))
P
check() { /usr/bin/python3 check.py "$@" || fail "the timeline $1"; } # FILE RANKS STEPS FIRST-STEP CATEGORY/NAME,...
all=forward/conv1,backward/ip2,"step/forward,step/backward,run/evaluate,run/save,run/write a checkpoint,data/read a batch"
run 2 near report.timeline=true
check near/timeline-00000000.json 2 10 0 "$all,exchange/wait for the sum"
[ "$(ls near/timeline*)" = near/timeline-00000000.json ] || fail "files of ranks are left: $(ls near)"
run 2 over-tcp report.timeline=true report.timeline_steps=4 exchange.transport=tcp exchange.bucket_mb=0.001 train.epochs=3
check over-tcp/timeline-00000000.json 2 4 0 "forward/conv1,network/a bucket,network/values,exchange/hand over a bucket"
run 2 stages report.timeline=true split.pipeline=2 train.steps=5
check stages/timeline-00000000.json 2 5 0 "part/forward,part/backward,stages/to stage,stages/from stage,stages/wait for stage"
run 2 stages report.timeline=true train.steps=9
check stages/timeline-00000005.json 2 4 5 forward/conv1
run 2 parts report.timeline=true split.tensor=2 train.steps=3
check parts/timeline-00000000.json 2 3 0 "forward/pool1.join,backward/pool1.join,parts/to part,parts/from part,parts/wait for part"
run 3 quorum report.timeline=true sync.backup_workers=1 exchange.transport=tcp train.steps=6
[ -s quorum/timeline-00000000.json ] || fail "no timeline with backup workers: $(ls quorum)"

expect 2 "report.timeline needs report.dir" 1 job.yaml report.dir=none report.timeline=true
rm -rf near/step-* near/latest
expect 6 "near/timeline-00000000.json exists already" 2 job.yaml checkpoint.dir=near report.dir=near report.timeline=true
train 2 job.yaml checkpoint.dir=killed report.dir=killed report.timeline=true debug.fault="step@rank=1@step=5:kill" >killed.log 2>&1 && fail "killed, and fine"
for r in 0 1; do grep -q '"run/step"\|"name": "step"' killed/timeline-00000000.rank-0000$r.json || fail "rank $r of a run that was killed left no timeline: $(ls killed)"; done
finish
