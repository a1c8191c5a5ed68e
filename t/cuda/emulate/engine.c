/* SPDX-License-Identifier: MIT */
/*
 * The copy engine of an emulated block: bulk copies between its shared memory and all other,
 * barriers that count what has come, groups that are waited for.
 *
 * A copy is done at once, or later, as chance will have it; at the latest by a wait that covers
 * it. What comes too early or too late for the kernel then shows in its results.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "t/cuda/emulate/block.h"

/* No address in shared memory is below: one that was never set is found. */
#define SHARED_BASE  0x4000u
#define BARRIER_MARK 0x4241u

/* Failures of a barrier in a row, with nothing else happening, that are no longer patience. */
#define TRIES_MAX 200000

struct barrier {
	uint16_t mark;
	uint8_t pending; /* arrivals, of one */
	uint8_t phase;
	int32_t bytes; /* that are still to come */
};

static struct fiber *self(void)
{
	return (struct fiber *)(void *)emulated_self;
}

uint32_t emulated_shared_address(const void *at)
{
	return (uint32_t)((const char *)at - emulated_block->shared) + SHARED_BASE;
}

void *emulated_shared_at(uint32_t address, uint32_t bytes)
{
	uint64_t end = (uint64_t)address - SHARED_BASE + bytes;

	if (address < SHARED_BASE || end > emulated_block->shared_bytes) {
		emulated_fail("%u bytes at 0x%x of shared memory, of which it has %zu", bytes,
			      address - SHARED_BASE, emulated_block->shared_bytes);
	}
	return emulated_block->shared + (address - SHARED_BASE);
}

static void check_copy(const void *global, uint32_t shared, uint32_t bytes)
{
	(void)emulated_shared_at(shared, bytes);
	if ((uintptr_t)global % 16 != 0 || shared % 16 != 0 || bytes % 16 != 0 || bytes == 0) {
		emulated_fail("a bulk copy of %u bytes between %p and 0x%x of shared memory: not "
			      "multiples of 16",
			      bytes, global, shared);
	}
}

static struct emulated_copy *copy_new(char *global, uint32_t shared, uint32_t bytes)
{
	struct emulated_copy *copy = calloc(1, sizeof(*copy));

	if (!copy) {
		emulated_fail("no memory for a copy");
	}
	copy->global = global;
	copy->shared = shared;
	copy->bytes = bytes;
	return copy;
}

/* Barriers. */

static struct barrier *barrier_at(uint32_t address)
{
	struct barrier *barrier = emulated_shared_at(address, sizeof(*barrier));

	if (address % 8 != 0 || barrier->mark != BARRIER_MARK) {
		emulated_fail("there is no barrier at 0x%x of shared memory", address);
	}
	return barrier;
}

static void barrier_turn(struct barrier *barrier)
{
	if (barrier->pending == 0 && barrier->bytes == 0) {
		barrier->pending = 1;
		barrier->phase ^= 1;
		emulated_progress();
	}
}

void emulated_barrier_init(uint32_t address)
{
	struct barrier *barrier = emulated_shared_at(address, sizeof(*barrier));

	*barrier = (struct barrier){.mark = BARRIER_MARK, .pending = 1};
}

void emulated_barrier_end(uint32_t address)
{
	barrier_at(address)->mark = 0;
}

void emulated_barrier_expect(uint32_t address, uint32_t bytes)
{
	struct barrier *barrier = barrier_at(address);

	if (barrier->pending == 0) {
		emulated_fail("a second arrival in one phase of the barrier at 0x%x", address);
	}
	barrier->pending--;
	barrier->bytes += (int32_t)bytes;
	barrier_turn(barrier);
}

/* Loads: any thread may wait for them. */

static void load_do(struct emulated_copy *copy)
{
	struct barrier *barrier = barrier_at(copy->barrier);

	memcpy(emulated_shared_at(copy->shared, copy->bytes), copy->global, copy->bytes);
	barrier->bytes -= (int32_t)copy->bytes;
	barrier_turn(barrier);
	free(copy);
}

/* Those of a barrier, and by chance others. */
static void loads_do(uint32_t barrier)
{
	struct emulated_copy **link = &emulated_block->loads;

	while (*link) {
		struct emulated_copy *copy = *link;

		if (copy->barrier == barrier || emulated_random(4) == 0) {
			*link = copy->next;
			load_do(copy);
		} else {
			link = &copy->next;
		}
	}
}

bool emulated_barrier_try_wait(uint32_t address, uint32_t parity)
{
	struct barrier *barrier = barrier_at(address);

	if (barrier->phase == parity && emulated_random(2)) {
		loads_do(address);
	}
	if (barrier->phase != parity) {
		return true;
	}
	if (emulated_block->rounds > TRIES_MAX) {
		emulated_fail("the barrier at 0x%x is waited for, and nothing comes", address);
	}
	self()->waits = "a barrier of bulk copies";
	emulated_yield();
	return false;
}

void emulated_bulk_load(uint32_t to, const char *from, uint32_t bytes, uint32_t barrier)
{
	struct emulated_copy *copy;

	check_copy(from, to, bytes);
	(void)barrier_at(barrier);
	/* It is only read. */
	copy = copy_new((char *)(uintptr_t)from, to, bytes);
	copy->barrier = barrier;
	if (emulated_random(3) == 0) {
		load_do(copy);
	} else {
		copy->next = emulated_block->loads;
		emulated_block->loads = copy;
	}
}

/* Stores: of the thread that issued them. */

static void store_read(struct emulated_copy *copy)
{
	if (copy->data) {
		return;
	}
	copy->data = malloc(copy->bytes);
	if (!copy->data) {
		emulated_fail("no memory for a copy");
	}
	memcpy(copy->data, emulated_shared_at(copy->shared, copy->bytes), copy->bytes);
}

static void store_do(struct emulated_copy *copy)
{
	store_read(copy);
	memcpy(copy->global, copy->data, copy->bytes);
	free(copy->data);
	free(copy);
}

void emulated_bulk_store(char *to, uint32_t from, uint32_t bytes)
{
	struct emulated_copy **link = &self()->stores;
	struct emulated_copy *copy;

	check_copy(to, from, bytes);
	copy = copy_new(to, from, bytes);
	copy->group = self()->group;
	switch (emulated_random(4)) {
	case 0:
		store_do(copy);
		return;
	case 1:
		store_read(copy);
		break;
	default:
		break;
	}
	while (*link) {
		link = &(*link)->next;
	}
	*link = copy;
}

void emulated_bulk_commit(void)
{
	self()->group++;
}

void emulated_bulk_wait(unsigned int pending, bool written)
{
	struct emulated_copy **link = &self()->stores;

	while (*link) {
		struct emulated_copy *copy = *link;
		bool covered = copy->group + pending < self()->group;

		if (written && (covered || emulated_random(8) == 0)) {
			*link = copy->next;
			store_do(copy);
			continue;
		}
		if (covered || emulated_random(8) == 0) {
			store_read(copy);
		}
		link = &copy->next;
	}
	emulated_progress();
}

void emulated_bulk_end(void)
{
	while (self()->stores) {
		struct emulated_copy *copy = self()->stores;

		if (!copy->data) {
			emulated_fail("it ends while %u bytes of shared memory are still to be "
				      "read by a bulk copy",
				      copy->bytes);
		}
		self()->stores = copy->next;
		store_do(copy);
	}
}

void emulated_bulk_drop(void)
{
	while (emulated_block->loads) {
		struct emulated_copy *copy = emulated_block->loads;

		emulated_block->loads = copy->next;
		free(copy);
	}
}
