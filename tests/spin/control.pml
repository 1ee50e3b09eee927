/*
 * The control protocol of one run with two ranks, each on a node of its own: how generations
 * change, how one coordinator takes another's place, and how a checkpoint is committed.
 *
 * Nothing here is fair: a process may take no further step, which is a crash, or take its next one
 * late, which is a coordinator that stood still while others took over. So every search has a crash
 * between any two steps. The lock on the state folder is left out; not every shared file system
 * has locks.
 *
 * Messages are worse off than on the real streams: what was said once may be heard at any later
 * time, again, in any order, and by any coordinator.
 *
 * Workers obey nobody, as on a node that hears nothing any more. So what agents do with messages
 * changes nothing for the others, and -DAGENTS searches it by itself, without checkpoints.
 *
 * Guards name the function that they stand for, and -DNO_... takes them out (see ./check). What is
 * one `atomic` is one call of Decide, one system call, or seen by nobody else before its end.
 */
#ifndef EPOCHS
#define EPOCHS 2
#endif
#ifndef LAST_GENERATION
#define LAST_GENERATION 2
#endif
#ifndef DISCARDS
#define DISCARDS 0 /* checkpoints given up without a fault of theirs */
#endif
#define GENERATIONS 2
#define STEPS 2 /* those with a checkpoint */

/* ---- what is durable ---- */

/* What the facts say of the run (coordinator/core/state.h). */
typedef Run {
  bit open;                 /* the latest generation is */
  byte generation;          /* the latest */
  byte by[STEPS + 1];       /* the generation whose checkpoint of the step is committed; 0: none */
  bit discarded[STEPS + 1]; /* the latest generation's checkpoint of the step */
}
#define COMMITTED_STEP(state) (state.by[2] -> 2 : (state.by[1] -> 1 : 0))

Run journal;           /* what a replay gives now */
byte newest_file;      /* the highest epoch that has a file */
byte head;             /* the highest epoch whose file has its header: where replay ends */
bit grown[EPOCHS + 1]; /* the head's file has, since the coordinator of this epoch read it */

/* step-S-gG. A manifest is the list of both ranks' parts, each as the generation that it is of. */
typedef Folder {
  byte part[2]; /* the generation that wrote it; 0: it is not there */
  byte pending; /* manifest.json.pending */
  byte manifest;
}
#define LIST(part0, part1) ((part0) * (GENERATIONS + 1) + (part1))
#ifdef NO_GENERATION_IN_FOLDER
#define FOLDER(g, s) (s)
#else
#define FOLDER(g, s) ((g) * STEPS + (s)) /* CheckpointFolder */
#endif
Folder folder[(GENERATIONS + 1) * STEPS + 1];

inline Remove(g, s) { /* DeleteCheckpoint of one that was not committed */
  if
  :: folder[FOLDER(g, s)].manifest == 0 ->
    folder[FOLDER(g, s)].part[0] = 0;
    folder[FOLDER(g, s)].part[1] = 0;
    folder[FOLDER(g, s)].pending = 0
  :: else
  fi
}

/* ---- what was said ---- */

/* CheckpointPart, in the order in which they are written: step 1 of rank 0, of rank 1, step 2 of
   rank 0, of rank 1. Ranks are alike, and a part that is not heard is as one not written. */
byte parts_said[GENERATIONS + 1];
#define PART_SAID(g, s, rank) (parts_said[g] > ((s) - 1) * 2 + (rank))
byte started[EPOCHS + 1]; /* StartGeneration was said of the generations up to this one */
byte over[EPOCHS + 1];    /* EndGeneration is said of those up to this one */
byte start_step[GENERATIONS + 1];

/* ---- what is promised ---- */

/* By which generation, from the moment that the world may know. */
byte committed[STEPS + 1];

#define WHOLE(g, s)                                                                \
  (folder[FOLDER(g, s)].part[0] == g && folder[FOLDER(g, s)].part[1] == g &&       \
   (folder[FOLDER(g, s)].manifest == LIST(g, g) ||                                 \
    (folder[FOLDER(g, s)].manifest == 0 && folder[FOLDER(g, s)].pending == LIST(g, g))))

#define PROMISES(s)                                                                \
  /* What was committed survives. */                                               \
  assert(committed[s] == 0 || journal.by[s] == committed[s]);                      \
  /* A committed step has all of its parts, from one generation. */                \
  assert(journal.by[s] == 0 || WHOLE(journal.by[s], s));                           \
  /* A manifest.json is that of a committed checkpoint. */                         \
  assert(folder[FOLDER(1, s)].manifest == 0 || journal.by[s] == 1);                \
  assert(folder[FOLDER(2, s)].manifest == 0 || journal.by[s] == 2)

#ifdef NO_GENERATION_IN_FOLDER
#define CheckPromises()                                                            \
  assert(committed[1] == 0 || journal.by[1] == committed[1]);                      \
  assert(committed[2] == 0 || journal.by[2] == committed[2]);                      \
  assert(journal.by[1] == 0 || WHOLE(journal.by[1], 1));                           \
  assert(journal.by[2] == 0 || WHOLE(journal.by[2], 2))
#else
#define CheckPromises() PROMISES(1); PROMISES(2)
#endif

byte given_up;

/* ---- a coordinator ---- */

mtype = { WRITE_PENDING, PUBLISH, DELETE, SWEEP };
chan jobs[EPOCHS + 1] = [3] of { mtype, byte /* generation */, byte /* step */, byte /* list */ };
chan manifest_written[EPOCHS + 1] = [1] of { byte /* generation */, byte /* step */, bit /* ok */ };

inline Copy(to, from) {
  to.open = from.open;
  to.generation = from.generation;
  to.by[1] = from.by[1];
  to.by[2] = from.by[2];
  to.discarded[1] = from.discarded[1];
  to.discarded[2] = from.discarded[2]
}

#ifdef UNFENCED_JOURNAL
#define REPLACED false
#else
#define REPLACED (newest_file > e) /* FileJournal::CheckNotReplaced, after the write */
#endif

/* FileJournal::Append as far as fdatasync. What stands behind a sealed length is read by nobody. */
inline Write() {
  if
  :: head == e ->
    Copy(journal, state);
    if
    :: e + 1 <= EPOCHS -> grown[e + 1] = 1
    :: else
    fi;
    if
    :: e + 2 <= EPOCHS -> grown[e + 2] = 1
    :: else
    fi
  :: else
  fi;
  CheckPromises()
}

#ifdef NO_GENERATION_FENCE
#define CURRENT(g) state.open
#else
#define CURRENT(g) (state.open && (g) == state.generation) /* Core::Impl::Current */
#endif

/* Core::Impl::OnPart: a part is taken that is not settled. Which ones were is not kept: each may
   have been heard by now or not, and the last one is heard when the manifest is to be written. */
#define TAKEN(s) (s > COMMITTED_STEP(state) && !state.discarded[s])
#define HEARD(g, s, rank) (CURRENT(g) && PART_SAID(g, s, rank))
#define IN_FLIGHT(s) \
  (TAKEN(s) && (HEARD(1, s, 0) || HEARD(1, s, 1) || HEARD(2, s, 0) || HEARD(2, s, 1)))

/* Core::Impl::WriteNextManifest. No fact stands behind it: it leaves without the journal. */
#define COMPLETE(g0, g1, s) \
  (writing == 0 && TAKEN(s) && nfull(jobs[e]) && HEARD(g0, s, 0) && HEARD(g1, s, 1))

inline WriteManifest(g0, g1, s) {
  writing = s;
  listed = LIST(g0, g1);
  jobs[e]!WRITE_PENDING, state.generation, s, LIST(g0, g1)
}

/* Core::Impl::DiscardInFlight; `drop`: what its effect will delete */
inline DiscardInFlight(s) {
  state.discarded[s] = 1;
  drop[s] = 1;
  listed = (writing == s -> 0 : listed);
  writing = (writing == s -> 0 : writing)
}

inline Delete(s) {
  if
  :: drop[s] -> drop[s] = 0; jobs[e]!DELETE, state.generation, s, 0
  :: else
  fi
}

inline Publish(s) {
  if
  :: state.by[s] -> jobs[e]!PUBLISH, state.by[s], s, 0
  :: else
  fi
}

/* Core::Impl::Sweep; the list: what is known to be committed */
#ifdef AGENTS
#define Sweep(last_generation) skip
#else
#define Sweep(last_generation) jobs[e]!SWEEP, last_generation, 0, LIST(state.by[1], state.by[2])
#endif

/* What the facts that are being appended lead to. */
mtype = { OPENED, STARTED, GENERATION_ENDED, COMMITTED, DISCARDED };

proctype Coordinator(byte e) {
  Run state;
  byte writing; /* the step whose manifest is being written, with these parts */
  byte listed;
  bit drop[STEPS + 1];
  mtype decided = OPENED;
  byte g, s;
  bit ok;

  /* FileJournal::Read */
  atomic {
    newest_file == e - 1 -> grown[e] = 0;
#ifdef NO_GROWTH_CHECK
    Copy(state, journal)
#endif
  };
  /* FileJournal::BeginFile: O_EXCL gives each epoch to one coordinator. */
  newest_file = e;
#ifndef NO_GROWTH_CHECK
  /* FileJournal::CheckFormerUnchanged. So what was read is what stands there now. */
  if
  :: atomic { grown[e] -> goto stopped }
  :: atomic { !grown[e] -> Copy(state, journal) }
  fi;
#endif
  /* The header, which says which file was the former one and how much of it counts. */
  atomic {
    if
    :: head < e -> head = e; Copy(journal, state)
    :: else
    fi;
    drop[1] = state.discarded[1];
    drop[2] = state.discarded[2];
    CheckPromises()
  };

appended:
  /* The facts are on disk, and the effects leave (Loop::Commit). Whether they leave late makes no
     difference to the jobs, which wait, and to messages, which may be late. */
  atomic {
    if
    :: REPLACED -> goto stopped
    :: !REPLACED && decided == COMMITTED -> committed[s] = g; CheckPromises()
    :: else
    fi;
    Delete(1);
    Delete(2);
    if
    :: decided == OPENED -> /* Core::Impl::Open: what a crash may have cut off */
#ifndef NO_REPUBLISH
      Publish(1);
      Publish(2);
#endif
      Sweep(state.generation - state.open)
    :: decided == COMMITTED -> Publish(s)
    :: else
    fi;
    started[e] = state.generation;
    over[e] = state.generation - state.open;
    g = 0; s = 0; ok = 0; decided = 0
  };

  do
  :: atomic { COMPLETE(1, 1, 1) -> WriteManifest(1, 1, 1) }
  :: atomic { COMPLETE(1, 1, 2) -> WriteManifest(1, 1, 2) }
  :: atomic { COMPLETE(2, 2, 1) -> WriteManifest(2, 2, 1) }
  :: atomic { COMPLETE(2, 2, 2) -> WriteManifest(2, 2, 2) }
#ifdef NO_GENERATION_FENCE
  :: atomic { COMPLETE(1, 2, 1) -> WriteManifest(1, 2, 1) }
  :: atomic { COMPLETE(1, 2, 2) -> WriteManifest(1, 2, 2) }
#endif
#ifdef NO_PARTS_CHECK
  :: atomic {
    writing == 0 && TAKEN(1) && nfull(jobs[e]) && HEARD(1, 1, 0) -> WriteManifest(1, 0, 1)
  }
#endif

  /* Core::Impl::TryPlan. It does not wait for GenerationGone: the core does so before it uses a
     node again, but not where a spare node takes the place of a lost one. */
  :: atomic {
    !state.open && state.generation < LAST_GENERATION && COMMITTED_STEP(state) < STEPS ->
    state.open = 1;
    state.generation++;
    state.discarded[1] = 0;
    state.discarded[2] = 0;
    start_step[state.generation] =
        (head == e -> COMMITTED_STEP(state) : start_step[state.generation]);
    Write();
    decided = STARTED;
    goto appended
  }

  /* Core::Impl::EndGeneration: a rank has failed, a lease has run out, or all is done. */
  :: atomic {
    state.open ->
    state.open = 0;
    writing = 0;
    listed = 0;
    Write();
    decided = GENERATION_ENDED;
    goto appended
  }

  /* On(ManifestWritten) */
  :: atomic {
    manifest_written[e]?g, s, ok ->
    if
    :: !CURRENT(g) || writing != s -> g = 0; s = 0; ok = 0
    :: else ->
      if
      :: ok -> /* Core::Impl::Commit */
        /* Only the open generation makes progress, past what is committed, by parts of its own. */
        assert(head != e || (journal.open && journal.generation == g));
        assert(head != e || COMMITTED_STEP(journal) < s);
        assert(listed == LIST(g, g));
        writing = 0;
        listed = 0;
        state.by[s] = g;
        decided = COMMITTED
      :: else -> DiscardInFlight(s); decided = DISCARDED
      fi;
      Write();
      goto appended
    fi
  }

  /* Core::Impl::OnCheckpointFailed, or the deadline of a part */
  :: atomic {
    given_up < DISCARDS && (IN_FLIGHT(1) || IN_FLIGHT(2)) ->
    given_up++;
    if
    :: IN_FLIGHT(1) -> DiscardInFlight(1)
    :: IN_FLIGHT(2) -> DiscardInFlight(2)
    fi;
    Write();
    decided = DISCARDED;
    goto appended
  }
  od;

stopped:
  skip;
  d_step {
    state.open = 0; state.generation = 0; state.by[1] = 0; state.by[2] = 0;
    state.discarded[1] = 0; state.discarded[2] = 0;
    listed = 0;
    writing = 0; drop[1] = 0; drop[2] = 0; g = 0; s = 0; ok = 0; decided = 0
  }
}

/* A coordinator's FileWorker, a thread of its own: coordinator/rpc/run_files.cc. */
inline SweepFolder(swept, s, known) {
  if
  :: swept <= g && swept != (known) -> Remove(swept, s)
  :: swept <= g && swept == (known) -> assert(folder[FOLDER(swept, s)].manifest) /* completed */
  :: else
  fi
}

proctype FileWorker(byte e) {
  byte g, s, list;
  do
  :: atomic {
    jobs[e]?WRITE_PENDING, g, s, list ->
    if
    /* CheckPartFile, for each part that the manifest lists */
    :: (folder[FOLDER(g, s)].part[0] || list / (GENERATIONS + 1) == 0) &&
       (folder[FOLDER(g, s)].part[1] || list % (GENERATIONS + 1) == 0) ->
      folder[FOLDER(g, s)].pending = list;
      CheckPromises();
      manifest_written[e]!g, s, 1
    :: else -> manifest_written[e]!g, s, 0
    fi;
    g = 0; s = 0; list = 0
  }
  :: atomic {
    jobs[e]?PUBLISH, g, s, list ->
    if
    :: folder[FOLDER(g, s)].pending ->
      folder[FOLDER(g, s)].manifest = folder[FOLDER(g, s)].pending;
      folder[FOLDER(g, s)].pending = 0
    :: else
    fi;
    CheckPromises();
    g = 0; s = 0
  }
  :: atomic { jobs[e]?DELETE, g, s, list -> Remove(g, s); CheckPromises(); g = 0; s = 0 }
  :: atomic {
    jobs[e]?SWEEP, g, s, list ->
    SweepFolder(1, 1, list / (GENERATIONS + 1));
    SweepFolder(1, 2, list % (GENERATIONS + 1));
    SweepFolder(2, 1, list / (GENERATIONS + 1));
    SweepFolder(2, 2, list % (GENERATIONS + 1));
    CheckPromises();
    g = 0; list = 0
  }
  od
}

/* ---- an agent and the worker of its rank ---- */

#ifdef NO_EPOCH_FENCE
#define OBEYS(e) true
#else
#define OBEYS(e) (e >= epoch) /* AgentCore::On(CoordinatorSaid) */
#endif

/* AgentCore::OnStart: a newer generation of the run takes an older one's place. */
#define START_HEARD(e, g) g <= started[e] && OBEYS(e) && g > newest

inline OnStart(e, g) {
  assert(e >= epoch); /* The effects of one epoch are obeyed, the latest heard of. */
  epoch = e;
  newest = g;
  held = g
}

/* AgentCore::OnEnd. A coordinator says so of what is over, and of what it has never heard of. */
#define END_HEARD(e, g) (g <= over[e] || g > started[e]) && started[e] && OBEYS(e) && held == g

inline OnEnd(e, g) {
  assert(e >= epoch);
  /* Nobody ends a generation that is open. */
  assert(!journal.open || journal.generation != g);
  epoch = e;
  held = 0
}

proctype Agent() {
  byte epoch;  /* the highest obeyed */
  byte newest; /* the highest generation that was held here */
  byte held;   /* the generation whose workers run */
  do
  :: atomic { START_HEARD(1, 1) -> OnStart(1, 1) }
  :: atomic { START_HEARD(1, 2) -> OnStart(1, 2) }
  :: atomic { END_HEARD(1, 1) -> OnEnd(1, 1) }
  :: atomic { END_HEARD(1, 2) -> OnEnd(1, 2) }
#if EPOCHS > 1
  :: atomic { START_HEARD(2, 1) -> OnStart(2, 1) }
  :: atomic { START_HEARD(2, 2) -> OnStart(2, 2) }
  :: atomic { END_HEARD(2, 1) -> OnEnd(2, 1) }
  :: atomic { END_HEARD(2, 2) -> OnEnd(2, 2) }
#endif
#if EPOCHS > 2
  :: atomic { START_HEARD(3, 1) -> OnStart(3, 1) }
  :: atomic { START_HEARD(3, 2) -> OnStart(3, 2) }
  :: atomic { END_HEARD(3, 1) -> OnEnd(3, 1) }
  :: atomic { END_HEARD(3, 2) -> OnEnd(3, 2) }
#endif
  od
}

/* The workers of a generation that was started once. They obey nobody: they may be on a node that
   hears nothing any more. PartWriter never touches a folder that has its manifest.json. */
proctype Workers(byte g) {
  atomic {
    (started[1] >= g || started[EPOCHS] >= g || started[(EPOCHS + 1) / 2] >= g) ->
#ifdef EARLY_LOAD
    /* What it starts from can be read: CheckpointReader::Open. */
    assert(start_step[g] == 0 ||
           folder[FOLDER(journal.by[start_step[g]], start_step[g])].manifest);
#endif
    parts_said[g] = start_step[g] * 2
  };
  do
  :: atomic {
    parts_said[g] < STEPS * 2 && folder[FOLDER(g, parts_said[g] / 2 + 1)].manifest == 0 ->
    folder[FOLDER(g, parts_said[g] / 2 + 1)].part[parts_said[g] % 2] = g;
    parts_said[g]++;
    CheckPromises()
  }
  od
}

init {
  atomic {
    run Coordinator(1);
#if EPOCHS > 1
    run Coordinator(2);
#endif
#if EPOCHS > 2
    run Coordinator(3);
#endif
#ifdef AGENTS
    run Agent()
#else
    run Workers(1);
    run Workers(2);
    run FileWorker(1);
#if EPOCHS > 1
    run FileWorker(2);
#endif
#if EPOCHS > 2
    run FileWorker(3);
#endif
    skip
#endif
  }
}
