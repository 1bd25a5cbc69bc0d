#include "summary.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The age does not matter: each program gives up after a different time. */
static bool same_destination(const struct failure *a, const struct failure *b)
{
    return a->port == b->port && a->given_up == b->given_up && a->unknown == b->unknown &&
           (a->given_up || a->error == b->error) && a->family == b->family &&
           memcmp(a->address, b->address, sizeof a->address) == 0;
}

/* Equal for the same destinations. (FNV-1a.) */
static uint32_t hash_of(const struct failure *failure)
{
    uint32_t hash = 2166136261;

    for (size_t i = 0; i < sizeof failure->address; i++)
        hash = (hash ^ failure->address[i]) * 16777619;
    hash = (hash ^ failure->port) * 16777619;
    return (hash ^ (failure->given_up ? 0xffffu : (uint32_t)failure->error)) * 16777619;
}

static struct destination *find(struct summary *summary, const struct failure *failure, uint32_t hash)
{
    for (size_t i = 0; i < summary->used; i++)
        if (summary->hashes[i] == hash && same_destination(&summary->destinations[i].last, failure))
            return &summary->destinations[i];
    return NULL;
}

/* Whether there is room for one more of this user and process. Each may have at most as many as it leaves free: so a
 * process that fails everywhere gets a third of all, a user with many such processes half, and there is always room
 * for another one. */
static bool has_room_for(const struct summary *summary, const struct failure *failure)
{
    size_t free = SUMMARY_DESTINATIONS - summary->used;
    size_t of_user = 0;
    size_t of_process = 0;

    for (size_t i = 0; i < summary->used; i++) {
        const struct failure *other = &summary->destinations[i].last;

        of_user += other->uid == failure->uid;
        of_process += other->uid == failure->uid && other->pid == failure->pid;
    }
    return of_user + of_process < free;
}

static void add(struct summary *summary, const struct failure *last, uint64_t failures, uint64_t first_ns)
{
    uint32_t hash = hash_of(last);
    struct destination *destination = find(summary, last, hash);

    summary->failures += failures;
    if (destination == NULL) {
        if (!has_room_for(summary, last))
            return;
        summary->hashes[summary->used] = hash;
        destination = &summary->destinations[summary->used++];
        *destination = (struct destination){.first_ns = first_ns, .last = *last, .hash = hash};
    }
    destination->failures += failures;
    if (first_ns < destination->first_ns)
        destination->first_ns = first_ns;
    if (last->time_ns >= destination->last.time_ns)
        destination->last = *last;
}

void summary_add(struct summary *summary, const struct failure *failure)
{
    add(summary, failure, 1, failure->time_ns);
}

void summary_clear(struct summary *summary)
{
    summary->failures = 0;
    summary->lost = 0;
    summary->used = 0;
}

void summary_merge(struct summary *summary, struct summary *more)
{
    uint64_t failures = summary->failures + more->failures;

    for (size_t i = 0; i < more->used; i++)
        add(summary, &more->destinations[i].last, more->destinations[i].failures, more->destinations[i].first_ns);
    /* Includes those that were only counted, on either side. */
    summary->failures = failures;
    summary->lost += more->lost;
    summary_clear(more);
}

/* ---- What comes first ---------------------------------------------------------------------------------------- */

struct place {
    struct destination *destination;
    bool told;
    unsigned turn; /* how many of the same process or user are before it */
    size_t before; /* its former position */
};

/* Destinations not reported yet, then those with most failures, then the earliest. */
static int by_weight(const void *left, const void *right)
{
    const struct place *a = left;
    const struct place *b = right;

    if (a->told != b->told)
        return a->told ? 1 : -1;
    if (a->destination->failures != b->destination->failures)
        return a->destination->failures > b->destination->failures ? -1 : 1;
    return (a->destination->first_ns > b->destination->first_ns) -
           (a->destination->first_ns < b->destination->first_ns);
}

static int by_turn(const void *left, const void *right)
{
    const struct place *a = left;
    const struct place *b = right;

    if (a->turn != b->turn)
        return a->turn > b->turn ? 1 : -1;
    return (a->before > b->before) - (a->before < b->before);
}

static bool same_user(const struct failure *a, const struct failure *b)
{
    return a->uid == b->uid;
}

static bool same_process(const struct failure *a, const struct failure *b)
{
    return a->uid == b->uid && a->pid == b->pid;
}

/* Interleaves them: the first one of each, then the second one of each, and so on. */
static void take_turns(struct place *places, size_t count, bool (*same)(const struct failure *, const struct failure *))
{
    for (size_t i = 0; i < count; i++) {
        places[i].turn = 0;
        places[i].before = i;
        for (size_t j = 0; j < i; j++)
            places[i].turn += same(&places[j].destination->last, &places[i].destination->last);
    }
    qsort(places, count, sizeof places[0], by_turn);
}

static bool is_told(const struct told *told, uint32_t hash, int64_t now_ms)
{
    size_t place = hash % TOLD_DESTINATIONS;

    return told->places[place].hash == hash && told->places[place].until_ms > now_ms;
}

void told_add(struct told *told, const struct summary *summary)
{
    int64_t until_ms = monotonic_ms() + TOLD_FOR_MS;

    for (size_t i = 0; i < summary->used; i++) {
        const struct destination *destination = &summary->destinations[i];
        size_t place = destination->hash % TOLD_DESTINATIONS;

        if (destination->named) {
            told->places[place].hash = destination->hash;
            told->places[place].until_ms = until_ms;
        }
    }
}

/* ---- The message -------------------------------------------------------------------------------------------- */

static void put_line(struct text *text, const struct destination *destination)
{
    const struct failure *last = &destination->last;

    put_format(text, "\n%" PRIu64 " x ", destination->failures);
    put_destination(text, last);
    put(text, " (");
    put_reason(text, last);
    put_format(text, "; last pid %" PRIu32 ", command ", last->pid);
    put_command(text, last->comm);
    put(text, "; first ");
    put_time_of_day(text, destination->first_ns);
    put(text, " last ");
    put_time_of_day(text, last->time_ns);
    put(text, ")");
}

static void put_lost(struct text *text, const struct summary *summary)
{
    if (summary->lost > 0)
        put_format(text, "\n%" PRIu64 " events were lost; there may be more failures among them", summary->lost);
}

void summary_put_message(struct text *text, struct summary *summary, const struct told *told, const char *host)
{
    struct place places[SUMMARY_DESTINATIONS];
    int64_t now_ms = monotonic_ms();
    uint64_t others = summary->failures;
    size_t lines = summary->used < SUMMARY_LINES ? summary->used : SUMMARY_LINES;

    for (size_t i = 0; i < summary->used; i++) {
        struct destination *destination = &summary->destinations[i];

        destination->named = false;
        places[i] = (struct place){.destination = destination, .told = is_told(told, destination->hash, now_ms)};
    }
    if (summary->failures == 1) {
        summary->destinations[0].named = true;
        put_failure(text, &summary->destinations[0].last);
        put(text, " on ");
        put(text, host);
        put_lost(text, summary);
        return;
    }
    qsort(places, summary->used, sizeof places[0], by_weight);
    take_turns(places, summary->used, same_process);
    take_turns(places, summary->used, same_user);
    put_format(text, "%" PRIu64 " TCP failures on %s:", summary->failures, host);
    for (size_t i = 0; i < lines; i++) {
        put_line(text, places[i].destination);
        places[i].destination->named = true;
        others -= places[i].destination->failures;
    }
    if (others > 0)
        put_format(text, "\nand %" PRIu64 " failures of other destinations", others);
    put_lost(text, summary);
}
