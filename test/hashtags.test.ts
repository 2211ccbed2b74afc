import { describe, expect, test } from 'vitest'

import { hashtags } from '../src/index.ts'

const each = (texts: Record<string, string[]>) => Object.entries(texts).map(([text, tags]) => [text, tags] as const)

describe('what is a tag', () => {
  test.each(
    each({
      'Sunset in #Rome and #Rome_2 #rome': ['rome', 'rome_2'],
      'letters of #any #скрипт #한국어 #日本語 #ไทยเที่ยว #हिन्दी #தமிழ் #עברית #العربية #ქართული #ትግርኛ': ['any', 'скрипт', '한국어', '日本語', 'ไทยเที่ยว', 'हिन्दी', 'தமிழ்', 'עברית', 'العربية', 'ქართული', 'ትግርኛ'],
      'and beyond the first plane: #𠀡𐒠 #𖼄𖽑': ['𠀡𐒠', '𖼄𖽑'],
      'digits: #2day #day2 #۳هشتگ #हिन्दी_१२': ['2day', 'day2', '۳هشتگ', 'हिन्दी_१२'],
      'full-width: ＃ｔａｇ１ ！＃タグ。': ['tag1', 'タグ'],
      '#at the beginning, at the #end': ['at', 'end'],
      '(#a) [#b] “#c” #d. #e, #f! #g? #h: #i; #j… 「#k」': ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k'],
      "#it's #well-known #a.b #c+d": ['it', 'well', 'a', 'c'],
      '.#a,#b/#c ##d': ['a', 'b', 'c', 'd'],
      'after an emoji: ✌#a ✌️#b ✌🏿#c 👨‍👩‍👧#d': ['a', 'b', 'c', 'd'],
      'between parts: #il·lusió #צה״ל #བོད་སྐད་ #ジョン・スミス #ｱ･ｲ': ['il·lusió', 'צה״ל', 'བོད་སྐད', 'ジョン・スミス', 'ア・イ'],
      'and not at the end: #a· #b・#c': ['a', 'b', 'c'],
      '#a\n#b\t#c\u00A0#d\u3000#e': ['a', 'b', 'c', 'd', 'e'],
      '&amp;#a': ['a'],
    }),
  )('%s', (text, tags) => expect(hashtags(text)).toEqual(tags))

  test.each([
    '', '#', '# a', '#!', '##', 'no tag', '#1', '#2026', '#١٢٣', '#_', '#1_2', '#-a', '#·a', '#😀', '#\u3164', '#\u200D', '#\u0301', '#\uD800',
    'a#b', 'a_#b', '1#b', 'é#b', 'e\u0301#b', '日本語#タグ', '&#39;', '&#x27;', '&#nbsp;', '#\uFE0F\u20E3', '#\uFE0Fb', '#\u20E3b',
    '#a#b', '#a＃b', '#a#', '#1#b',
  ])('none: %j', (text) => expect(hashtags(text)).toEqual([]))

  test('no more than 100 code points, which fit in a key', () => {
    const longest = '𠀡'.repeat(100)
    expect(hashtags(`#${longest} #${longest}𠀡 #c`)).toEqual([longest, 'c'])
    // Written with parts that become one.
    expect(hashtags(`#${'한'.repeat(100).normalize('NFD')}`)).toEqual(['한'.repeat(100)])
    expect(hashtags(`#${'ß'.repeat(51)}`)).toEqual([])
  })
})

describe('URLs', () => {
  test.each([
    'https://x.org/#a', 'https://x.org#a', 'HTTP://X.ORG/?q=#a', 'see(https://x.org/(a)#b)', 'ftp://x.org/a/#b/#c', 'https://x.org/東京_(a)/#b', 'http://localhost:3000/#a', 'app://#a',
    'www.x.org/p#b', 'www.x.org/#b', 'www.x.org?q=#b', 'WWW.x.org/#b', '(www.x.org/#b', 'x.org/#c', 'x.org/p#c', 'x.org/p/#c', 'x.co.uk:8080/?q=/#c', 'пример.рф/#c', '例え.テスト/#c', 'me@x.org/#c', 'x.org#c',
    '#http://x.org', '#https://x.org/#a',
  ])('no tag in %s', (url) => {
    expect(hashtags(url)).toEqual([])
    expect(hashtags(`#before ${url} #after`)).toEqual(['before', 'after'])
    expect(hashtags(`「${url}」#after`)).toEqual(['after'])
    expect(hashtags(`<${url}>#after`)).toEqual(['after'])
  })

  test('what only looks like one is none', () => {
    expect(hashtags('and/#a x.y/#b awww.#c www #d : //#e 1.5/#f end. /#g w.w/w#h')).toEqual(['a', 'b', 'c', 'd', 'e', 'f', 'g'])
  })
})

describe('one spelling', () => {
  test.each(
    each({
      'strasse': ['straße', 'STRASSE', 'STRAẞE', 'Strasse', 'ｓｔｒａßｅ', 'ſtraſſe'],
      'οδος': ['ΟΔΟΣ', 'οδος', 'οδοσ', 'Οδος'],
      'σίσυφος_1': ['ΣΊΣΥΦΟΣ_1', 'Σίσυφοσ_1'],
      'café': ['CAFÉ', 'cafe\u0301', 'CAFE\u0301'],
      'istanbul': ['İstanbul', 'ISTANBUL', 'ıstanbul', 'i\u0307stanbul', 'İ\u0307stanbul'],
      'ハッシュタグ': ['ﾊｯｼｭﾀｸﾞ', 'ハッシュタク\u3099'],
      'tag123': ['ＴＡＧ１２３', '𝐓𝐚𝐠𝟏𝟐𝟑'],
      'میخواهم': ['می\u200Cخواهم'],
      'ශ්රී': ['ශ්\u200Dරී'],
      'heart': ['hea\uFE0Frt', 'heart\uFE0F', 'heart・\uFE0F'],
      'ǰ': ['J\u030C'],
      '한국': ['한국'.normalize('NFD')],
      'il·lusió': ['IL·LUSIÓ', 'iŀlusió'],
      'ffi': ['ﬃ'],
    }),
  )('%s', (tag, spellings) => {
    for (const text of [tag, ...spellings]) expect(hashtags(`#${text}`)).toEqual([tag])
    expect(hashtags([tag, ...spellings].map((text) => `#${text}`).join(' '))).toEqual([tag])
  })

  test('of every character that Unicode has several spellings of, or that is not to be seen: a tag is its own spelling, and case and composition make no difference', () => {
    const different: string[] = []
    for (let point = 0; point <= 0x10ffff; point++) {
      const character = String.fromCodePoint(point)
      if (!/[\p{L}\p{M}\p{Nd}\p{Default_Ignorable_Code_Point}]/v.test(character)) continue
      const spellings = [character.toUpperCase(), character.toLowerCase(), character.normalize('NFKC'), character.normalize('NFD')]
      if (/[\p{L}\p{Nd}]/v.test(character) && spellings.every((spelling) => spelling === character)) continue
      const written = `#a${character}b #${character}c #d${character}`
      const tags = hashtags(written).join(' #')
      const others = [`#${tags}`, written.toUpperCase(), written.toLowerCase(), written.normalize('NFD'), written.normalize('NFC')]
      if (others.some((other) => hashtags(other).join(' #') !== tags)) different.push(point.toString(16))
    }
    expect(different).toEqual([])
  })
})

test('tags that are blocked are left out, in all spellings', () => {
  const asked: string[] = []
  const isBlocked = (tag: string) => asked.push(tag) > 0 && tag === 'spam'
  expect(hashtags('#Spam #ham #SPAM #ｓｐａｍ #ham', { isBlocked })).toEqual(['ham'])
  expect(new Set(asked)).toEqual(new Set(['spam', 'ham']))
})

test('the time is in proportion to the text, whatever that is', () => {
  const length = 2 ** 16
  const parts = ['#', 'a.', 'a', 'a_', '#a', '#a ', '#a·', '·', '://', '/', 'a.aa/', `.${'a'.repeat(63)}/`, 'www.', '&#', '\u0301', '#\u0301', '\u200D', '＃', '𠀡', ' ', '#ß', 'http:', '12:', '。']
  const texts = parts.flatMap((part) => {
    const long = part.repeat(length / part.length)
    return [long, `#${long}`, `#a${long}`, `x.${long}/#a`, `www.${long}#a`, `${long}#`]
  })
  const started = performance.now()
  for (const text of texts) hashtags(text)
  // A quadratic case takes that long for each of the texts that meet it.
  expect(performance.now() - started).toBeLessThan(30_000)
})

test('nor does a long text take stack', () => {
  for (const part of ['a', 'a.', '·a']) expect(() => hashtags(`#a${part.repeat(2 ** 22 / part.length)}`)).not.toThrow()
})
