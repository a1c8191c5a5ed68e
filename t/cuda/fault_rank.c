/* SPDX-License-Identifier: MIT */
/* A rank plays the scenes of its group, one after the other. */
#include "config.h"

#include "t/cuda/fault.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "t/device.h"

/* Destroying everything, once the comm has failed, takes less. */
#define DESTROY_MS 1500

uint64_t fault_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void fault_sleep_ms(int ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

int fault_ms_since(uint64_t ns)
{
	uint64_t now = fault_now_ns();

	return now > ns ? (int)((now - ns) / 1000000) : 0;
}

void fault_fail(struct fault_rank *r, const char *fmt, ...)
{
	struct fault_slot *slot = fault_slot(r, r->number);
	char text[400];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	slot->failures++;
	if (slot->used + strlen(text) + 2 <= sizeof(slot->text)) {
		slot->used += (size_t)snprintf(slot->text + slot->used,
					       sizeof(slot->text) - slot->used, "%s\n", text);
	}
}

bool fault_is(struct fault_rank *r, int got, int want, const char *call)
{
	return fault_check(r, got == want, "%s: %d (%s), not %d: %s", call, got,
			   moeep_strerror(got), want, got == MOEEP_OK ? "" : moeep_error_detail());
}

bool fault_kills(const struct fault_scene *scene)
{
	return scene->fate == FATE_KILLED || scene->fate == FATE_KILLED_BUSY;
}

/* At most one rank of a group is killed. */
bool fault_is_dead(const struct fault_group *group, int scene, int number)
{
	for (int i = 0; i < scene; i++) {
		if (fault_kills(group->scenes[i]) && fault_victim(group, i) == number) {
			return true;
		}
	}
	return false;
}

int fault_victim(const struct fault_group *group, int scene)
{
	return group->scenes[scene]->victim % group->num_ranks;
}

static int alive(const struct fault_rank *r)
{
	int count = 0;

	for (int number = 0; number < r->group->num_ranks; number++) {
		count += !fault_is_dead(r->group, r->scene, number);
	}
	return count;
}

static bool times_out(const struct fault_scene *scene)
{
	return scene->fate == FATE_LATE || scene->fate == FATE_STOPPED;
}

static void play(struct fault_rank *r)
{
	const struct fault_scene *scene = fault_scene(r);
	struct fault_slot *slot = fault_slot(r, r->number);
	uint64_t begun;

	r->num_ranks = alive(r);
	r->rank = 0;
	for (int number = 0; number < r->number; number++) {
		r->rank += !fault_is_dead(r->group, r->scene, number);
	}
	r->victim = scene->fate != FATE_NONE && r->number == fault_victim(r->group, r->scene);
	if (fault_open(r, times_out(scene) ? FAULT_TIMEOUT_MS : FAULT_LONG_MS) && fault_verify(r) &&
	    fault_ok(r, moeep_comm_barrier(r->comm))) {
		fault_act(r);
	}
	/* Nobody waits for one whose scene went wrong. */
	if (slot->failures > 0 && r->comm) {
		(void)moeep_comm_abort(r->comm, "a scene went wrong");
	}
	atomic_store(&slot->in_call, 1);
	atomic_store(&slot->given_up, 1);
	begun = fault_now_ns();
	fault_close(r);
	slot->destroy_ms = fault_ms_since(begun);
	fault_check(r, slot->destroy_ms <= DESTROY_MS, "destruction took %d ms", slot->destroy_ms);
	fault_check_device(r);
	atomic_store(&slot->finished, 1);
}

/* Comms are made within their time-out, so ranks begin together. */
static bool meet(struct fault_rank *r)
{
	atomic_int *met = &r->group->shared->met[r->scene];
	uint64_t since = fault_now_ns();

	atomic_fetch_add(met, 1);
	while (atomic_load(met) < alive(r)) {
		if (fault_ms_since(since) > FAULT_PATIENCE_MS) {
			fault_fail(r, "the others do not come to this scene");
			return false;
		}
		fault_sleep_ms(1);
	}
	return true;
}

void fault_rank_run(struct fault_rank *r)
{
	if (device_mode() != DEVICE_NONE) {
		if (!fault_ok(r, device_begin(r->number)) || !fault_ok(r, moeep_cu_load(&r->cu))) {
			return;
		}
	}
	fault_memory_make(r);
	for (r->scene = 0; r->scene < r->group->num_scenes; r->scene++) {
		if (!meet(r)) {
			break;
		}
		play(r);
	}
	fault_memory_free(r);
}
