/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Who owns which endpoint, by the address of its socket. Part of tcp_event.bpf.c.
 *
 * Where pointers can be cast, that is a table of sets, looked through without a call of a helper: with the usual
 * mitigations the kernel's hash map costs more than all else that the programs do, and takes three times as long to make.
 * What a full set has no place for is in such a map, and so is everything on other kernels.
 */
#ifndef TCPEVENT_OWNERS_H
#define TCPEVENT_OWNERS_H

#include "cast.h"
#include "forget.h"
#include "owner.h"
#include "tcp_event.h"

/*
 * Keys apart from owners, so that all of a set are in one cache line. (A socket is most often in the first place.) The size
 * is a power of two, so that a set begins with a cache line, and is found by a shift.
 */
struct owner_set {
	__u64 keys[TCP_SET_PLACES]; /* sockets; 0: a free place; BUSY: one that is being filled */
	__u32 more; /* of its sockets are in `more_owners`; on a host with many connections some are, of some sets */
	__u32 pad[7];
	struct owner owners[TCP_SET_PLACES];
};

_Static_assert(sizeof(struct owner_set) == 256, "owner_set has no power of two");

/* No address of a socket. */
#define BUSY 1ULL

/* Mapped, so that user space can count; and because elements then begin at cache lines. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << TCP_SET_BITS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct owner_set);
} owner_sets SEC(".maps");

/*
 * For the rest. Preallocated, so that an update fails for one reason only: more endpoints than entries. Not an LRU: that
 * one evicts live endpoints in batches. Where there is no table, user space makes it larger.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TCP_MORE_OWNERS);
	__type(key, __u64);
	__type(value, struct owner);
} more_owners SEC(".maps");

__u64 lost_owners;

/* Set by user space once it hears who lets go of a socket: from then on the programs keep what that needs. */
__u32 sees_let_go;

/*
 * A key for `more_owners`: where there is no table, the socket itself. A copy, for kernels forget what a stack slot holds once
 * its address goes to a helper, and the verifier must still know the socket.
 */
#define KEY(number) ((__u64){number})

/*
 * A number for a socket. To the verifier an address is none, but the distance between two is. In assembly, as the compiler
 * would take it apart.
 */
static __always_inline __u64 number_of(const struct sock *sk)
{
	__u64 number = (__u64)CAST(sock, sk);

	asm volatile("%[number] -= %[base]" : [number] "+r"(number) : [base] "r"(&lost_owners));
	return number;
}

/* Where the owner of an endpoint is, or is to be. */
struct where {
	struct owner_set *set; /* where there is a table */
	__u64 number;
};

/* Fibonacci hashing: the allocator aligns sockets, so that the lowest bits of their addresses say nothing. */
static __always_inline struct owner_set *set_of(__u64 number)
{
	__u32 index = (__u32)number * 0x9e3779b1u >> (32 - TCP_SET_BITS);

	return bpf_map_lookup_elem(&owner_sets, &index);
}

/*
 * Where in a set a key is; TCP_SET_PLACES: nowhere. The answer goes through a byte of the stack, of which the verifier forgets what
 * it holds, as in forget(): but each way stores a constant, which takes no register.
 */
static __always_inline __u64 place_of(const struct owner_set *set, __u64 key)
{
	volatile __u8 bytes[8] __attribute__((aligned(8)));

	if (*(volatile __u64 *)&set->keys[0] == key)
		bytes[1] = 1;
	else if (*(volatile __u64 *)&set->keys[1] == key)
		bytes[1] = 2;
	else if (*(volatile __u64 *)&set->keys[2] == key)
		bytes[1] = 3;
	else if (*(volatile __u64 *)&set->keys[3] == key)
		bytes[1] = 4;
	else
		bytes[1] = TCP_SET_PLACES + 1;
	return (__u64)bytes[1] - 1;
}

/*
 * 1 if they differ, else 0: by arithmetic, as each branch would double what the verifier follows. In assembly, as the compiler would
 * make a branch of it.
 */
static __always_inline __u64 differ(__u64 one, __u64 other)
{
	__u64 difference = one ^ other, bit;

	asm volatile("%[bit] = %[difference]; %[bit] = -%[bit]; %[bit] |= %[difference]; %[bit] >>= 63"
		     : [bit] "=&r"(bit)
		     : [difference] "r"(difference));
	return bit;
}

/* Whether `more_owners` has sockets of this set: nobody looks there in vain. */
static __always_inline bool has_more(const struct owner_set *set)
{
	return *(volatile __u32 *)&set->more;
}

static __always_inline struct where where_is(const struct sock *sk)
{
	struct where at = {.number = (__u64)sk};

	if (can_cast) {
		at.number = number_of(sk);
		at.set = set_of(at.number);
	}
	return at;
}

/* It always is: said to the verifier, which would follow what else could be. */
static __always_inline bool is_somewhere(struct where at)
{
	return !can_cast || at.set;
}

/* The owner of an endpoint, to be read and written; or NULL. */
static __always_inline struct owner *owner_at(struct where at)
{
	__u64 place;

	if (!can_cast)
		return bpf_map_lookup_elem(&more_owners, &KEY(at.number));
	if (!at.set)
		return 0;
	place = place_of(at.set, at.number);
	if (place < TCP_SET_PLACES)
		return &at.set->owners[place];
	return has_more(at.set) ? bpf_map_lookup_elem(&more_owners, &at.number) : 0;
}

/*
 * What becomes of an endpoint is in order, but for this: a process may accept the connection while its handshake still ends on
 * another processor, and both find no entry. Whoever puts one with BPF_ANY has the last word.
 */
static __noinline void settle(struct owner_set *set, __u64 number, __u64 place, __u64 flags)
{
	__u64 other = 0, others = 0, is_other;

	if (!set || place >= TCP_SET_PLACES)
		return;
#pragma unroll
	/* From the last on, so that the first one counts where there are more. */
	for (__u64 i = TCP_SET_PLACES; i-- > 0;) {
		is_other = differ(i, place) & ~differ(*(volatile __u64 *)&set->keys[i], number);
		others += is_other;
		other ^= (other ^ i) & -is_other;
	}
	if (!others || other >= TCP_SET_PLACES)
		return;
	if (flags == BPF_ANY)
		set->owners[other] = set->owners[place];
	else
		*(volatile __u64 *)&set->keys[place] = 0;
}

/*
 * Puts an owner into the table. False where its set is full, or another processor has just taken the place that was free.
 */
static __always_inline bool put_into_set(struct owner_set *set, __u64 number, const struct owner *owner, __u64 flags)
{
	__u64 place = place_of(set, 0), others = 0;

	if (place >= TCP_SET_PLACES || __sync_val_compare_and_swap(&set->keys[place], 0, BUSY))
		return false;
	set->owners[place] = *owner;
	/* A barrier, so that of two who do this at least one sees the other. */
	__sync_lock_test_and_set(&set->keys[place], number);
#pragma unroll
	for (int i = 0; i < TCP_SET_PLACES; i++)
		others += differ(*(volatile __u64 *)&set->keys[i], number);
	if (others < TCP_SET_PLACES - 1)
		settle(set, number, place, flags);
	return true;
}

/* Of an endpoint that has just been found to have none. 0, or what the map of the rest has said. */
static __noinline long put_into_table(struct owner_set *set, __u64 number, const struct owner *owner, __u64 flags)
{
	long err;

	if (!set)
		return -1;
	if (put_into_set(set, number, owner, flags))
		return 0;
	err = bpf_map_update_elem(&more_owners, &number, owner, flags);
	if (!err)
		__sync_fetch_and_add(&set->more, 1);
	return err;
}

/* Notes an owner: BPF_ANY, or BPF_NOEXIST. */
static __always_inline void note_at(struct where at, const struct owner *owner, __u64 flags)
{
	long err;

	if (can_cast)
		err = put_into_table(at.set, at.number, owner, flags);
	else
		err = bpf_map_update_elem(&more_owners, &KEY(at.number), owner, flags);
	if (err && err != -EEXIST)
		__sync_fetch_and_add(&lost_owners, 1);
}

static __always_inline void forget_at(struct where at)
{
	if (!can_cast) {
		bpf_map_delete_elem(&more_owners, &KEY(at.number));
		return;
	}
	if (!at.set)
		return;
#pragma unroll
	/* All, where two have put it: see put_into_set(). */
	for (int i = 0; i < TCP_SET_PLACES; i++)
		if (*(volatile __u64 *)&at.set->keys[i] == at.number)
			*(volatile __u64 *)&at.set->keys[i] = 0;
	if (has_more(at.set) && !bpf_map_delete_elem(&more_owners, &at.number))
		__sync_fetch_and_add(&at.set->more, -1);
}

/* An endpoint has ended. Of one that is held, it is kept when its close was reported, for who lets go of it. */
static __always_inline void end_at(struct where at, __u64 held_ns)
{
	struct owner *known = held_ns && *(volatile __u32 *)&sees_let_go ? owner_at(at) : 0;

	if (known) {
		known->birth_ns = held_ns;
		known->has_ended = 1;
	} else {
		forget_at(at);
	}
}

#endif
