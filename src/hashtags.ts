export interface HashtagOptions {
  /** Leaves out the tags for which it is true. It gets them as they would be returned, so that one entry of a list stands for all spellings. */
  isBlocked?: ((tag: string) => boolean) | undefined
}

/** In code points. Each has up to four bytes, and a key up to 2,000. */
const maxLength = 100

// All that follows is searched for and never repeated without bound within a pattern, so that texts of any kind and length take linear time and no stack.

/**
 * A sign that may begin a tag; or what makes all that follows it, up to a space, a URL. Before the sign there is no part of a word, to which the variation selector at the end of an
 * emoji does not belong, and no `&`, as in `&#39;`; a mark behind it would make it another sign, such as a keycap.
 */
const signOrUrl = /(?<sign>[#＃])(?<!&.|(?![\uFE0E\uFE0F])[\p{L}\p{M}\p{Nd}_].)(?=[\p{L}\p{Nd}_])|:\/\/|www\.(?<![\p{L}\p{M}\p{Nd}_]....)|\/(?<=[\p{L}\p{Nd}]\.[\p{L}\p{M}]{2,63}(?::\d{1,5})?\/)/giv
const urlEnd = /[\s<>"[\p{P}--\p{ASCII}]]/gv
/** Joiners are needed by Persian and Indic scripts. The other signs stand within words of Catalan, Hebrew, Tibetan and Japanese, and end a tag elsewhere. */
const tagEnd = /[^\p{L}\p{M}\p{Nd}_·׳״་・･\u200C\u200D]|[·׳״་・･](?![[\p{L}\p{M}\p{Nd}_]--\p{Default_Ignorable_Code_Point}])/gv

/**
 * The hashtags of a text, each once, in the order in which they appear first, without the sign and in one spelling: that of `#Straße`, `#STRASSE` and `＃ｓｔｒａｓｓｅ` is `strasse`.
 *
 * - A tag consists of letters and marks of any script, decimal digits and underscores, after `#` or the full-width `＃`. It has one letter at least, and at most 100 code points; what is
 *   longer is no tag. `·`, `׳`, `״`, `་` and `・` belong to it between two of those.
 * - No tag: within a URL (`https://x.org/#a`, `www.x.org/p#b`, `x.org/#c`), right after a letter, a digit, an underscore or `&` (`a#b`, `&#39;`), and where another sign follows at
 *   once (`#a#b` has none), as in twitter-text.
 * - Spelling: Unicode's NFKC and full case folding, without what is not to be seen, such as joiners; `İ` and `ı` become `i`, as `I` does. It is made to be compared
 *   and counted. Whoever wants to show a tag as it was written takes it from the text.
 *
 * It is a pure function, and takes time in proportion to the text, whatever that holds.
 *
 * @example
 * ```ts
 * hashtags('Sunset in #Zürich, see https://example.org/#map #ZÜRICH #nofilter') // ['zürich', 'nofilter']
 * hashtags('#spam and #ham', { isBlocked: (tag) => tag === 'spam' }) // ['ham']
 * ```
 */
export function hashtags(text: string, { isBlocked = () => false }: HashtagOptions = {}): string[] {
  const tags = new Set<string>()
  let position = 0
  for (;;) {
    const found = firstMatch(signOrUrl, text, position)
    if (found === null) return [...tags]
    const start = found.index + found[0].length
    if (found.groups?.sign === undefined) {
      position = endAt(urlEnd, text, start)
      continue
    }
    position = endAt(tagEnd, text, start)
    if (/^(?:[#＃]|:\/\/)/.test(text.slice(position, position + 3))) continue
    const tag = spelling(text.slice(start, position))
    const isTag = /\p{L}/v.test(tag) && /^\P{M}/v.test(tag) && [...tag].length <= maxLength
    if (isTag && !tags.has(tag) && !isBlocked(tag)) tags.add(tag)
  }
}

function firstMatch(pattern: RegExp, text: string, from: number): RegExpExecArray | null {
  pattern.lastIndex = from
  return pattern.exec(text)
}

function endAt(pattern: RegExp, text: string, from: number): number {
  return firstMatch(pattern, text, from)?.index ?? text.length
}

function spelling(tag: string): string {
  return (
    tag
      .normalize('NFKC')
      // Also what normalizing has brought in: some letters stand for several words.
      .replaceAll(/[^\p{L}\p{M}\p{Nd}_·׳״་・]|\p{Default_Ignorable_Code_Point}/gv, '')
      .replace(/·$/, '')
      // ẞ has no upper case, ß has, and the last step finds the right sigma.
      .toLowerCase()
      .toUpperCase()
      .toLowerCase()
      .replaceAll(/i\u0307+/g, 'i')
      .normalize('NFKC')
  )
}
