#include "allowance.h"

#include <stddef.h>
#include <string.h>

enum { USER_SHARE = 2, DESTINATION_SHARE = 4 };

static const uint64_t ns_per_s = 1000000000;

void allowance_set(struct allowance *allowance, unsigned rate)
{
    memset(allowance, 0, sizeof *allowance);
    allowance->line_ns = rate > 0 ? ns_per_s / rate : 0;
}

/* (The finalizer of splitmix64.) */
static uint64_t mix(uint64_t bits)
{
    bits += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
}

/* The user is part of the key: a user who finds two destinations with the same key affects no other user's account. */
static uint64_t destination_key(uint64_t user_key, const struct tcpevent_event *event)
{
    uint64_t halves[2];

    memcpy(halves, event->remote_addr, sizeof halves);
    return mix(mix(mix(user_key ^ halves[0]) ^ halves[1]) ^ event->remote_port);
}

/* The account with this key in a set. If there is none, replaces the one closest to whole. */
static struct account *find(struct account ways[ALLOWANCE_WAYS], uint64_t key)
{
    struct account *least = &ways[0];

    for (size_t i = 0; i < ALLOWANCE_WAYS; i++) {
        if (ways[i].key == key)
            return &ways[i];
        if (ways[i].whole_ns < least->whole_ns)
            least = &ways[i];
    }
    *least = (struct account){.key = key};
    return least;
}

/* What `whole_ns` becomes if time worth `cost_ns` is taken; 0 if there is not enough. */
static uint64_t after(uint64_t whole_ns, uint64_t now_ns, uint64_t cost_ns)
{
    uint64_t whole = (whole_ns > now_ns ? whole_ns : now_ns) + cost_ns;

    return whole <= now_ns + ALLOWANCE_SAVED_S * ns_per_s ? whole : 0;
}

bool allowance_take(struct allowance *allowance, const struct tcpevent_event *event, unsigned lines)
{
    uint64_t now_ns = event->monotonic_ns;
    uint64_t cost_ns = allowance->line_ns * lines;
    uint64_t user_key = mix(event->uid);
    uint64_t key = destination_key(user_key, event);
    struct account *user;
    struct account *destination;
    uint64_t of_user;
    uint64_t of_destination;
    uint64_t of_all;

    if (allowance->line_ns == 0)
        return true;
    user = find(allowance->users[user_key % ALLOWANCE_USERS], user_key);
    destination = find(allowance->destinations[key % ALLOWANCE_DESTINATIONS], key);
    of_user = after(user->whole_ns, now_ns, cost_ns * USER_SHARE);
    of_destination = after(destination->whole_ns, now_ns, cost_ns * DESTINATION_SHARE);
    of_all = after(allowance->whole_ns, now_ns, cost_ns);
    if (of_user == 0 || of_destination == 0 || of_all == 0)
        return false;
    user->whole_ns = of_user;
    destination->whole_ns = of_destination;
    allowance->whole_ns = of_all;
    return true;
}
