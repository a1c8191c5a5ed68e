/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_words.cuh - words that carry their epoch.
 *
 * All that LL ranks write into each other's slots goes in words of 16 bytes, three values and a tag
 * made from the epoch. A word is written and read as one, so whoever sees the tag has the values:
 * nothing is fenced, and no flag has to follow. Rows go in parcels, which a warp stores and loads.
 */
#ifndef MOEEP_KERNELS_LL_WORDS_CUH
#define MOEEP_KERNELS_LL_WORDS_CUH

#include "device.cuh"

#define VALUES MOEEP_DEV_WORD_VALUES

/* Slots go by the epoch's lowest bit. Never 0, as memory is that nobody has written to. */
DEV uint32_t tag_of(uint64_t epoch)
{
	return (uint32_t)(epoch >> 1) | 0x80000000u;
}

/* For reports: the epoch of a tag as a flag has it, without its bits from 32 on. */
DEV uint64_t flag_of_tag(uint32_t tag, uint64_t epoch)
{
	return tag == 0 ? 0 : flag_word((uint64_t)(tag & 0x7fffffffu) << 1 | (epoch & 1), 0);
}

DEV int words_of(int values)
{
	return (values + VALUES - 1) / VALUES;
}

DEV uint32_t value_of(const uint4 &word, int i)
{
	return i == 0 ? word.x : i == 1 ? word.y : word.z;
}

/* Who writes a word, and what it is, for the report of a wait. */
struct writer {
	int rank;
	int what;
	uint64_t epoch;
};

/* Load, in this thread, a word until it is of the epoch. False: the comm has failed. */
DEV bool take_word(const struct moeep_dev_context &c, const char *at, const struct writer &from,
		   uint4 *word)
{
	uint64_t start = 0;
	uint32_t polls = 0;

	for (;;) {
		*word = load_whole16(at);
		if (word->w == tag_of(from.epoch)) {
			return true;
		}
		if (++polls % POLLS_PER_CHECK == 0 &&
		    !wait_check(c, from.rank, from.what, flag_word(from.epoch, 0),
				flag_of_tag(word->w, from.epoch), &start)) {
			return false;
		}
	}
}

/*
 * A lane's share of a parcel: 3 chunks of 16 bytes, each 32 lanes from the next, and on their way 4
 * words, likewise. A row's last parcel has fewer chunks; the words of those that are missing are
 * neither stored nor waited for.
 */
#define CHUNKS 3
#define WORDS  4

DEV int parcels_of(uint64_t row_bytes)
{
	return (int)((row_bytes + MOEEP_DEV_PARCEL - 1) / MOEEP_DEV_PARCEL);
}

/* Number of a token's parcel in its slot. */
DEV uint64_t parcel_number(int token, int parcel, uint64_t row_bytes)
{
	return (uint64_t)token * (uint64_t)parcels_of(row_bytes) + (uint64_t)parcel;
}

/* Chunk 0 of this lane, as a number of chunks from the row's begin; chunk i is 32 i further. */
DEV int64_t first_chunk(int parcel)
{
	return (int64_t)parcel * (32 * CHUNKS) + LANE;
}

/* How many of this lane's chunks the row has. */
DEV int chunks_in(int parcel, uint64_t row_bytes)
{
	int64_t left = (int64_t)(row_bytes / 16) - first_chunk(parcel) + 31;

	return left < 32 ? 0 : left >= 32 * CHUNKS ? CHUNKS : (int)(left / 32);
}

/* Chunks to words. */
DEV void store_parcel(char *to, const uint4 *v, int chunks, uint64_t epoch)
{
	uint32_t tag = tag_of(epoch);

	to += LANE * MOEEP_DEV_WORD;
	if (chunks > 0) {
		store_whole16(to, v[0].x, v[0].y, v[0].z, tag);
		store_whole16(to + 512, v[0].w, v[1].x, v[1].y, tag);
	}
	if (chunks > 1) {
		store_whole16(to + 1024, v[1].z, v[1].w, v[2].x, tag);
	}
	if (chunks > 2) {
		store_whole16(to + 1536, v[2].y, v[2].z, v[2].w, tag);
	}
}

/* Of so many chunks, word i is one. */
DEV bool has_word(int chunks, int i)
{
	return chunks > (i < 2 ? 0 : i - 1);
}

/* Ask for the words; take_parcel() looks whether they were there. */
DEV void load_parcel(uint4 *word, const char *from, int chunks)
{
#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		if (has_word(chunks, i)) {
			word[i] = load_whole16(from + i * 512 + LANE * MOEEP_DEV_WORD);
		}
	}
}

/*
 * A warp waits until all words that it has asked for are of the epoch, and makes chunks of them. False:
 * the comm has failed.
 */
DEV bool take_parcel(const struct moeep_dev_context &c, uint4 *word, const char *at, int chunks,
		     const struct writer &from, uint4 *v)
{
	uint32_t tag = tag_of(from.epoch);
	uint64_t start = 0;
	uint32_t polls = 0;

	for (;;) {
		bool there = true;
		uint32_t seen = tag;

#pragma unroll
		for (int i = 0; i < WORDS; i++) {
			if (has_word(chunks, i) && word[i].w != tag) {
				there = false;
				seen = word[i].w;
			}
		}
		if (__all_sync(FULL, there)) {
			break;
		}
		if (++polls % POLLS_PER_CHECK == 0) {
			/* One of the lanes that wait looks for all. */
			int first = __ffs((int)__ballot_sync(FULL, !there)) - 1;
			bool go = LANE != first ||
				  wait_check(c, from.rank, from.what, flag_word(from.epoch, 0),
					     flag_of_tag(seen, from.epoch), &start);

			if (!__all_sync(FULL, go)) {
				return false;
			}
		}
		load_parcel(word, at, chunks);
	}
	v[0] = make_uint4(word[0].x, word[0].y, word[0].z, word[1].x);
	v[1] = make_uint4(word[1].y, word[1].z, word[2].x, word[2].y);
	v[2] = make_uint4(word[2].z, word[3].x, word[3].y, word[3].z);
	return true;
}

#endif
