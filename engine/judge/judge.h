#pragma once
/* How good an answer is, held against a reference. Texts need not end with NUL, nor be UTF-8. */

#include <stdbool.h>
#include <stddef.h>

/* The same text, white space at both ends apart. */
bool judge_exact(const char *reference, size_t reference_len, const char *answer,
	size_t answer_len);

/*
 * The same number in the end, as GSM8K's answers are compared (Cobbe et al. 2021): the first after the
 * last "####" where there is one, else the last of all. Thousands separators, a leading "$" and zeros
 * that say nothing do not matter; "7-3" holds 7 and 3. False where either has none.
 */
bool judge_last_number(const char *reference, size_t reference_len, const char *answer,
	size_t answer_len);

/* F-measures of ROUGE-1, -2 and -L (Lin 2004), as the package rouge-score computes them without
 * stemming: words are runs of a-z and 0-9 after lower-casing. */
struct rouge {
	double rouge1, rouge2, rouge_l;
};
/* -ENOMEM. */
int judge_rouge(const char *reference, size_t reference_len, const char *answer, size_t answer_len,
	struct rouge *ret);
